"""What the statistics say to the planner: rankings, predicted losses, retained neurons.

Everything is read one layer at a time and reduced to [experts, legal widths] tables, so a
30B-parameter model plans in a few hundred MiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from tenp_edge.calibration.statistics import ROUNDING
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import ExpertKey, Widths
from tenp_edge.planning.memory.pricing import Constants
from tenp_edge.planning.options.methods import Method
from tenp_edge.planning.options.spec import DEFAULT_PROTECTION, Knobs
from tenp_edge.planning.space import Space
from tenp_edge.scoring.losses import cut_losses, prior_losses, stream_square, tail_sums
from tenp_edge.scoring.neuron_scores import neuron_score
from tenp_edge.scoring.regularisation import NO_INSURANCE, PROTECTION, Insurance, insured
from tenp_edge.scoring.saliency import expert_scores, neuron_scores, ranking_scores, tokens_routed

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Which scores decide. ``shared_ranking``: neurons compete across experts (method free).

    ``insurance``: what is added for text of another kind (method adaptive;
    `regularisation.insured`). ``block``: so many neurons, from a multiple of it on, stay or go
    together.
    """

    expert: str
    neuron: str
    seed: int
    shared_ranking: bool = False
    insurance: Insurance = NO_INSURANCE
    block: int = 1


def scores_of(method: Method, knobs: Knobs, statistics: Statistics, seed: int) -> Scores:
    """The scores that ``method`` sees ``statistics`` by: those that ``knobs`` name, or its own."""
    usable = [name for name in method.neuron_scores if neuron_score(name).is_in(statistics)]
    protection = knobs.protect or DEFAULT_PROTECTION
    return Scores(
        knobs.expert_score,
        knobs.neuron_score or usable[0],
        seed,
        shared_ranking=method.shared_ranking,
        insurance=PROTECTION[protection] if method.protects else NO_INSURANCE,
    )


@dataclass(frozen=True)
class LayerEvidence:
    """One MoE layer. ``ranking``: experts, best first, those that no token reached last.

    ``losses`` [experts, 1 + legal widths]: predicted loss of removing an expert, then of narrowing
    it to each legal width; ``gains`` [experts, legal widths]: sum of the neuron scores that are
    kept; ``insured`` [experts, 1 + legal widths]: ``losses`` with the insurance; ``tokens``
    [experts]; ``stream``: ||h'||^2 of the layer, by which energies were divided to give losses.
    """

    ranking: tuple[int, ...]
    losses: torch.Tensor
    gains: torch.Tensor
    insured: torch.Tensor
    tokens: torch.Tensor
    stream: float


class Evidence:
    """Statistics of one checkpoint seen through the chosen scores."""

    def __init__(self, statistics: Statistics, space: Space, scores: Scores) -> None:
        self.statistics, self.space, self.scores = statistics, space, scores
        with _one_thread():
            self.layers = {layer: self._layer(layer) for layer in space.layers}

    @property
    def rankings(self) -> dict[int, tuple[int, ...]]:
        return {layer: table.ranking for layer, table in self.layers.items()}

    @property
    def unreached(self) -> list[ExpertKey]:
        """Experts that no calibration token reached, as (layer, expert)."""
        return [
            (layer, expert)
            for layer, table in self.layers.items()
            for expert in (table.tokens == 0).nonzero().flatten().tolist()
        ]

    def super_experts(self) -> frozenset[ExpertKey]:
        """Experts whose largest output of a neuron stands out: method.md's super-expert guard.

        Above the 99.5th percentile of the experts and above a tenth of the largest, in the first
        three quarters of the layers: they make the massive activations that attention rests on.
        """
        early = self.space.layers[: math.ceil(0.75 * len(self.space.layers))]
        peaks = {layer: self.peaks(layer) for layer in self.space.layers}
        everyone = torch.cat(list(peaks.values()))
        bar = max(float(everyone.quantile(0.995)), float(everyone.max()) / 10)
        return frozenset(
            (layer, expert)
            for layer in early
            for expert in (peaks[layer] > bar).nonzero().flatten().tolist()
        )

    def peaks(self, layer: int) -> torch.Tensor:
        """max over neurons and tokens of |g m_k| ||w_k||, [experts]."""
        norms = self.statistics.weight_norms(layer)["down_norm"]
        by_domain = [
            (self.statistics.layer(domain, layer)["gated_activation_max"] * norms).amax(dim=1)
            for domain in self.statistics.domains
        ]
        return torch.stack(by_domain).amax(dim=0)

    def predicted_loss(self, widths: Widths) -> float:
        """Sum of the predicted losses of all cuts (`losses.cut_losses`)."""
        index = {width: i for i, width in enumerate((0, *self.space.legal_widths))}
        total = 0.0
        for layer, row in widths.items():
            columns = torch.tensor([index[width] for width in row])
            total += float(self.layers[layer].losses.gather(1, columns[:, None]).sum())
        return total

    def active_ratio(
        self, widths: Widths, full_width: int, keeps_places: bool = False
    ) -> float | None:
        """R_active: kept width over full width, summed over the routed tokens.

        None without routed tokens. With whole-expert removal the router finds other experts,
        which are all whole: 1. With ``keeps_places`` it finds those without neurons, too.
        """
        kept = full = 0.0
        for layer, row in widths.items():
            if 0 in row and not keeps_places:
                return 1.0
            tokens = self.layers[layer].tokens
            kept += float((tokens * torch.tensor(row, dtype=tokens.dtype)).sum())
            full += float(tokens.sum()) * full_width
        return kept / full if full else None

    def order(self, layer: int) -> torch.Tensor:
        """Neurons of every expert, best first, int64 [experts, width]."""
        return _descending(self._neuron_scores(layer))

    def rounding_sums(self, layer: int, widths: Sequence[int]) -> tuple[Array, Array, Array]:
        """Of gate, up and down: the loss at an error as large as the weights of the neurons that
        each width keeps, [experts, widths]."""
        order, columns = self.order(layer), list(widths)
        sums = self.statistics.rounding(layer)
        ordered = (pad(sums[name].gather(1, order).cumsum(dim=1), (1, 0)) for name in ROUNDING)
        gate, up, down = (kept[:, columns].numpy() for kept in ordered)
        return gate, up, down

    def retained(self, widths: Widths) -> dict[ExpertKey, torch.Tensor]:
        """The best neurons of every expert at its width, ascending, int32 [width]."""
        kept: dict[ExpertKey, torch.Tensor] = {}
        with _one_thread():
            for layer, row in widths.items():
                order = self.order(layer)
                for expert, width in enumerate(row):
                    kept[layer, expert] = order[expert, :width].sort().values.int()
        return kept

    def means(self, constants: Constants) -> dict[ExpertKey, torch.Tensor]:
        """The mean of each neuron of these experts, float32 [full width]."""
        layers = {layer: self.statistics.means(layer)[0] for layer in {key[0] for key in constants}}
        return {(layer, expert): layers[layer][expert].clone() for layer, expert in constants}

    def block_losses(self, widths: Widths) -> tuple[float, float]:
        """The predicted loss of ``widths`` with the neurons in blocks, and with single ones."""
        totals = []
        for scores in (self._neuron_scores, self._single_scores):
            losses = (
                cut_losses(self.statistics, layer, _descending(scores(layer)))
                .gather(1, torch.tensor(row)[:, None])
                .sum()
                for layer, row in widths.items()
            )
            totals.append(float(sum(losses)))
        return totals[0], totals[1]

    def _neuron_scores(self, layer: int) -> torch.Tensor:
        """Where neurons stay in blocks, all of a block have its mean score, so that they are
        neighbours in every order."""
        size = self.scores.block
        if size == 1:
            return self._single_scores(layer)
        scores = self._single_scores(layer)
        means = scores.reshape(len(scores), -1, size).mean(dim=2)
        return means.repeat_interleave(size, dim=1)

    def _single_scores(self, layer: int) -> torch.Tensor:
        name, seed = self.scores.neuron, self.scores.seed
        scores = neuron_scores(self.statistics, layer, name, seed)
        score = neuron_score(name)
        if not self.scores.shared_ranking or not score.comparable:
            return scores
        reached = tokens_routed(self.statistics, layer) > 0
        shared = ranking_scores(self.statistics, layer, name, seed)
        if self.scores.insurance.norms and score.is_loss:
            prior = prior_losses(self.statistics, layer) * len(self.statistics.domains)
            shared = shared + self.scores.insurance.norms * prior
        return torch.where(reached[:, None], shared, scores)

    def _losses(self, layer: int, order: torch.Tensor) -> torch.Tensor:
        """Of keeping each expert's first w neurons of ``order``, [experts, width + 1]: what the
        joint order was made with, or from the sums of single neurons."""
        if self.scores.block == 1 and neuron_score(self.scores.neuron).needs == "elimination":
            return self.statistics.elimination(layer, self.scores.neuron).losses
        return cut_losses(self.statistics, layer, order)

    def _layer(self, layer: int) -> LayerEvidence:
        scores = expert_scores(self.statistics, layer, self.scores.expert, self.scores.seed)
        tokens = tokens_routed(self.statistics, layer)
        scores = scores.masked_fill(tokens == 0, -torch.inf)
        ranking = tuple(_descending(scores).tolist())
        neuron = self._neuron_scores(layer)
        order = _descending(neuron)
        ends = torch.tensor(self.space.legal_widths) - 1
        columns = [0, *self.space.legal_widths]
        every_width = self._losses(layer, order)
        safe = every_width
        if self.scores.insurance != NO_INSURANCE:
            prior = tail_sums(prior_losses(self.statistics, layer).gather(1, order))
            safe = insured(every_width, prior, tokens, self.scores.insurance)
        gains = neuron.gather(1, order).cumsum(dim=1)[:, ends]
        stream = stream_square(self.statistics, layer)
        return LayerEvidence(
            ranking,
            every_width[:, columns],
            gains,
            safe[:, columns],
            tokens,
            stream,
        )


def _descending(values: torch.Tensor) -> torch.Tensor:
    """Indices from the highest value to the lowest along the last dimension; ties in order."""
    return values.argsort(dim=-1, descending=True, stable=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: a layer's scores are so small that waiting for others costs more
    (on a busy machine ten times more) than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

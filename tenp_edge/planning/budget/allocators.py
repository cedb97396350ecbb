"""Allocators bound to a model, and the choice of the trapezoid.

An allocator turns a budget of neurons into the largest legal plan of its method within it; `budget`
looks for the largest neuron budget whose priced plan stays within the bytes. BUILDERS says which
allocator each method has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tenp_edge.calibration.coverage import MIN_TOKENS
from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.planning.budget import allocation
from tenp_edge.planning.budget.allocation import Shape, Trapezoid
from tenp_edge.planning.options.methods import Method
from tenp_edge.planning.options.spec import Knobs
from tenp_edge.planning.scores.tables import Evidence
from tenp_edge.planning.space import Space

# Shares of rho that alpha is searched over, and the shapes: both directions, flat, U and hump.
ALPHA_SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)
SLOPES = ((1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (3.0, 1.0), (1.0, 1.5), (1.5, 1.0))
MIDDLES = (1.0, 0.5, 2.0)
PAPER_SHARE, PAPER_SHAPE = 0.5, Shape(1.0, 2.0, 1.0)


class Allocator(Protocol):
    """``least_neurons``: what the smallest legal plan of the method keeps."""

    least_neurons: int

    def widths(self, neurons: int) -> Widths:
        """The largest legal plan within ``neurons`` (at least ``least_neurons``)."""
        ...


class Uniform:
    """ENP: one width for every expert."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.least_neurons = space.total_experts * space.legal_widths[0]

    def widths(self, neurons: int) -> Widths:
        return allocation.uniform(self.space, neurons)


class Tenp:
    """Whole experts and one narrow width. ``whole_share`` pins alpha; else it is a share of rho.

    Without evidence the first experts of a layer are the whole ones: bytes do not care which.
    """

    def __init__(
        self,
        space: Space,
        evidence: Evidence | None,
        shape: Shape = PAPER_SHAPE,
        alpha_share: float = PAPER_SHARE,
        whole_share: float | None = None,
    ) -> None:
        self.space, self.shape = space, shape
        self.alpha_share, self.whole_share = alpha_share, whole_share
        first_come = dict.fromkeys(space.layers, tuple(range(space.experts)))
        self.ranking = evidence.rankings if evidence else first_come
        self.least_neurons = self.split(0).neurons(space)

    def split(self, neurons: int) -> Trapezoid:
        if self.whole_share is not None:
            return allocation.pinned_trapezoid(self.space, neurons, self.whole_share)
        whole_share = self.alpha_share * neurons / self.space.total_neurons
        return allocation.trapezoid(self.space, neurons, whole_share)

    def counts(self, split: Trapezoid) -> list[int]:
        """Whole experts of each layer."""
        weights = self.shape.weights(len(self.space.layers))
        return allocation.whole_counts(weights, split.whole, self.space.experts)

    def widths(self, neurons: int) -> Widths:
        split = self.split(neurons)
        return allocation.trapezoid_widths(self.space, split, self.counts(split), self.ranking)


class Drop:
    """Whole-expert removal: the same number of experts stays in every layer."""

    def __init__(self, space: Space, config: ModelConfig, evidence: Evidence | None) -> None:
        self.space, self.config = space, config
        first_come = dict.fromkeys(space.layers, tuple(range(space.experts)))
        self.ranking = evidence.rankings if evidence else first_come
        self._per_count = len(space.layers) * space.full
        self.least_neurons = self.neurons_at(0.0)

    def neurons_at(self, keep: float) -> int:
        """Neurons that removal at ratio ``keep`` really keeps: round(r E) experts a layer."""
        config = self.config
        kept = allocation.drop_count(
            self.space.experts, keep, config.num_experts_per_tok, config.n_group, config.topk_group
        )
        return kept * self._per_count

    def widths(self, neurons: int) -> Widths:
        groups = self.config.n_group
        kept = neurons // self._per_count // groups * groups
        return allocation.drop(self.space, kept, self.ranking, groups)


@dataclass(frozen=True)
class FreeRules:
    """How free widths are ranked.

    ``by_loss``: by what a step takes off the predicted loss, else by the neuron scores it keeps.
    ``ranking``: one pool of steps for the model ("global"), the same with every layer's gains
    as shares of the layer's own total ("coverage"), a pool per layer with even budgets ("layer")
    or budgets along ``shape`` ("trapezoid"). ``tilt``: gains are multiplied by a factor that grows
    by exp(tilt) from the first layer to the last. ``unit``: losses are counted in ||h'||^unit of
    the layer's stream: 0 as a share of the stream, 2 as energies. ``guards``: experts that are not
    cut, or not below the even width (`GUARDS`).
    """

    by_loss: bool = False
    ranking: str = "global"
    shape: Shape = PAPER_SHAPE
    tilt: float = 0.0
    unit: float = 0.0
    guards: tuple[str, ...] = ()


class Free:
    """Every expert its own legal width, one step after the other by gain per neuron.

    Experts that no token reached keep the width that every expert would have (no evidence is not
    a low score); the ranking decides over the rest.
    """

    def __init__(self, space: Space, evidence: Evidence, rules: FreeRules) -> None:
        self.space, self.evidence, self.rules = space, evidence, rules
        together = rules.ranking in ("global", "coverage")
        self.pools = [space.layers] if together else [(la,) for la in space.layers]
        self.super_experts = evidence.super_experts() if "super" in rules.guards else frozenset()
        guarded = len(self.super_experts) * (space.full - space.legal_widths[0])
        self.least_neurons = space.total_experts * space.legal_widths[0] + guarded

    def widths(self, neurons: int) -> Widths:
        size, widths = self.space.experts, Widths()
        for pool, share in zip(self.pools, self._shares(neurons), strict=True):
            left = min(share, neurons - sum(map(sum, widths.values())))
            gains, min_levels = self._ranked(pool, left)
            flat = allocation.free(self.space, left, gains, min_levels).tolist()
            widths |= {la: tuple(flat[i * size : (i + 1) * size]) for i, la in enumerate(pool)}
        return widths

    def _shares(self, neurons: int) -> list[int]:
        """Neurons of each pool: all, an even share, or along the trapezoid."""
        space, count = self.space, len(self.pools)
        even = self.rules.ranking != "trapezoid"
        weights = [1.0] * count if even or count == 1 else self.rules.shape.weights(count)
        minima = [self._pool_least(pool) for pool in self.pools]
        maximum = len(self.pools[0]) * space.experts * space.full
        steps = max(0, neurons - sum(minima)) // space.multiple
        room = (maximum - min(minima)) // space.multiple + 1
        extra = allocation.whole_counts(weights, min(steps, room * count), room)
        shares = [
            min(low + more * space.multiple, maximum)
            for low, more in zip(minima, extra, strict=True)
        ]
        shares[-1] += max(0, neurons - sum(shares))  # what rounding left
        return shares

    def _pool_least(self, pool: Sequence[int]) -> int:
        low, full = self.space.legal_widths[0], self.space.full
        guarded = sum(layer in pool for layer, _ in self.super_experts)
        return len(pool) * self.space.experts * low + guarded * (full - low)

    def _ranked(self, pool: Sequence[int], neurons: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gains [experts, legal widths] of the layers of one ranking, and the legal width that each
        expert starts from: pinned for unreached experts."""
        size, legal = self.space.experts, self.space.legal_widths
        gains = torch.cat([self._gains(layer) for layer in pool])
        tokens = torch.cat([self.evidence.layers[layer].tokens for layer in pool])
        even = self.space.floor(neurons / len(gains))
        idle = tokens == 0
        # Last in every ranking, yet finite: they widen only when nothing else can.
        gains[idle] = -1e12 * torch.arange(gains.shape[1], dtype=gains.dtype)
        rare = tokens < MIN_TOKENS if "tail" in self.rules.guards else idle
        min_levels = torch.where(idle | rare, legal.index(even), 0)
        for i, layer in enumerate(pool):
            for expert in range(size):
                if (layer, expert) in self.super_experts:
                    min_levels[i * size + expert] = len(legal) - 1
        taken = int(torch.tensor(legal)[min_levels].sum())
        if taken > neurons:  # the whole ones leave less than even
            min_levels = torch.where(min_levels == len(legal) - 1, min_levels, 0)
        return gains, min_levels

    def _gains(self, layer: int) -> torch.Tensor:
        """[experts, legal widths]: value of keeping each expert at each width."""
        table, rules = self.evidence.layers[layer], self.rules
        insured = table.insured
        gains = insured[:, :1] - insured[:, 1:] if rules.by_loss else table.gains.clone()
        if rules.ranking == "coverage":
            gains = gains / gains[:, -1].sum().clamp_min(1e-30)
        depth = self.space.layers.index(layer) / max(len(self.space.layers) - 1, 1)
        in_unit: float = table.stream ** (rules.unit / 2)
        return gains * (math.exp(rules.tilt * (depth - 0.5)) * in_unit)


# -- the trapezoid with evidence -------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One candidate trapezoid, its predicted loss, and the neurons it was compared at."""

    alpha_share: float
    shape: Shape
    predicted_loss: float
    near: int


def shapes(shallow: float | None, deep: float | None, middle: float | None) -> Iterator[Shape]:
    """The shapes to search; a pinned value is kept, a pinned end leaves the other to the grid."""
    seen = set()
    for start, end in SLOPES:
        for bump in MIDDLES:
            shape = Shape(
                start if shallow is None else shallow,
                end if deep is None else deep,
                bump if middle is None else middle,
            )
            if shape not in seen and shape.shallow + shape.deep > 0:
                seen.add(shape)
                yield shape


def choose_trapezoid(
    allocator: Tenp, evidence: Evidence, neurons: int, candidates: Sequence[Shape]
) -> Choice:
    """Alpha and shape with the least predicted loss within ``neurons``; ties keep the first."""
    shares = (PAPER_SHARE, *(s for s in ALPHA_SHARES if s != PAPER_SHARE))
    if allocator.whole_share is not None:
        shares = (PAPER_SHARE,)
    best: Choice | None = None
    for share in shares:
        split = Tenp(
            allocator.space, evidence, alpha_share=share, whole_share=allocator.whole_share
        ).split(neurons)
        losses = _losses_by_count(evidence, allocator.space, split.narrow)
        for shape in candidates:
            counts = Tenp(allocator.space, evidence, shape).counts(split)
            loss = sum(float(row[count]) for row, count in zip(losses, counts, strict=True))
            if best is None or loss < best.predicted_loss:
                best = Choice(share, shape, loss, neurons)
    assert best is not None
    return best


def _losses_by_count(evidence: Evidence, space: Space, narrow: int) -> list[torch.Tensor]:
    """Per layer, [experts + 1]: predicted loss when its c best experts stay whole."""
    column = 1 + space.legal_widths.index(narrow)
    tables = []
    for layer in space.layers:
        table = evidence.layers[layer]
        lost = table.losses[list(table.ranking), column]
        tables.append(torch.cat([lost.flip(0).cumsum(0).flip(0), torch.zeros(1).double()]))
    return tables


# -- what a method builds --------------------------------------------------------------------------

Build = Callable[[Space, ModelConfig, Evidence | None, Knobs], Allocator]


def _trapezoid(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Tenp(space, evidence, pinned_shape(knobs), PAPER_SHARE, knobs.whole_share)


def _uniform(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Uniform(space)


def _removal(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Drop(space, config, evidence)


def _by_score(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    assert evidence is not None, "free widths are ranked by scores"
    return Free(space, evidence, _rules(knobs, by_loss=False))


def _by_loss(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    """Without statistics a trapezoid of the same size stands in."""
    if evidence is None:
        return _trapezoid(space, config, evidence, knobs)
    return Free(space, evidence, _rules(knobs, by_loss=True))


def _rules(knobs: Knobs, by_loss: bool) -> FreeRules:
    return FreeRules(
        by_loss=by_loss,
        ranking=knobs.ranking or "global",
        shape=pinned_shape(knobs),
        tilt=knobs.tilt or 0.0,
        unit=knobs.unit or 0.0,
        guards=knobs.guards,
    )


def pinned_shape(knobs: Knobs) -> Shape:
    """The paper's shape with what is pinned."""
    return Shape(
        PAPER_SHAPE.shallow if knobs.shallow is None else knobs.shallow,
        PAPER_SHAPE.deep if knobs.deep is None else knobs.deep,
        PAPER_SHAPE.middle if knobs.middle is None else knobs.middle,
    )


# By the name of a row of `methods.METHODS`.
BUILDERS: Mapping[str, Build] = {
    "adaptive": _by_loss,
    "tenp": _trapezoid,
    "enp": _uniform,
    "free": _by_score,
    "drop": _removal,
}


def allocator_of(
    method: Method, space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    """Before the size is known: a trapezoid in the paper's shape. Raises UserError where the
    method needs scores and there are none."""
    if evidence is None and method.needs_statistics:
        raise UserError(
            f"--method {method.name} ranks neurons and needs calibration",
            "--calibration WORK (tenp-edge calibrate MODEL -o WORK), or --method tenp",
        )
    return BUILDERS[method.name](space, config, evidence, knobs)


def at_size(
    method: Method, first: Allocator, evidence: Evidence | None, knobs: Knobs, neurons: int
) -> tuple[Allocator, Choice | None]:
    """``first``, or for a trapezoid the alpha and shape of the least predicted loss at
    ``neurons``."""
    whole = evidence is None or neurons == evidence.space.total_neurons
    if not method.shaped or evidence is None or whole:
        return first, None
    assert isinstance(first, Tenp)
    candidates = [first.shape, *shapes(knobs.shallow, knobs.deep, knobs.middle)]
    choice = choose_trapezoid(first, evidence, neurons, candidates)
    share, pinned = choice.alpha_share, knobs.whole_share
    return Tenp(evidence.space, evidence, choice.shape, share, pinned), choice

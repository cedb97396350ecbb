"""What is taken down of one layer while text goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tenp_edge.calibration.elimination import (
    Elimination,
    JointMoments,
    eliminate,
    own_losses,
    prior,
)
from tenp_edge.calibration.mean_outputs import MeanNeurons
from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.calibration.rounding import RoundingMoments, Sampled, sampled
from tenp_edge.calibration.routed_gain import RoutedGain
from tenp_edge.calibration.statistics import (
    GROWTH_SUM,
    INPUT_SUM,
    MEANS,
    ROUNDING,
    LayerStatistics,
    accumulate_expert,
    accumulate_growth,
    accumulate_tokens,
)
from tenp_edge.forward.experts import ExpertGroup, RaggedExperts, routed_experts
from tenp_edge.forward.scratch import Scratch
from tenp_edge.models import ModelConfig, expected_tensors

_SHORTEST = 1e-20


class MoeObserver:
    """Adds what a layer's experts do to the sums of the domain that is running."""

    def __init__(self, experts: RaggedExperts, gain: RoutedGain, info: Mapping[str, Any]) -> None:
        self.experts, self.gain, self.scratch = experts, gain, Scratch()
        self.uses: list[torch.Tensor] = []
        first = experts[0].weight("up")
        self.moments = JointMoments(len(experts), first.shape[0], first.device)
        self.rounding = RoundingMoments(len(experts), first.shape[0])
        self.means = MeanNeurons(len(experts), first.shape[0])
        # Every domain counts the same, whatever its length.
        self.shares = {
            name: 1 / (max(counts["tokens"], 1) * len(info["domains"]))
            for name, counts in info["domains"].items()
        }
        experts.observer = self

    def begin(
        self, stats: LayerStatistics, active: torch.Tensor, domain: str, sequences: int
    ) -> None:
        """The next forward's tokens, ``sequences`` of ``domain``, go to ``stats``; padding (not
        ``active``, bool [tokens]) to nothing."""
        self.sequences = sequences
        self.stats, self.experts.active = stats, None if bool(active.all()) else active
        self.share = self.shares[domain]
        self.gated_norms: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.sampled: list[Sampled] = []

    def sequence_use(self) -> torch.Tensor:
        """[sequences, experts]: the choices that `routed` counted."""
        return torch.cat(self.uses)

    def end(self) -> None:
        """Let go of the experts: the two hold each other, and a layer must be freed at once."""
        self.experts.observer = None

    def residual(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """Pre-hook of the norm before the MoE block: its input is the residual stream h,
        [n, seq, hidden]."""
        self.h = arguments[0].reshape(-1, arguments[0].shape[-1])

    def after(self, output: torch.Tensor) -> None:
        """``output``: the layer's, [n, seq, hidden], of the forward that just ran."""
        kept = self.experts.active
        h, after, gain = self.h, output.reshape(self.h.shape), self.gain.squared()
        self._round(after, gain)
        if kept is not None:
            h, after = h[kept], after[kept]
            gain = gain[kept] if gain is not None and gain.ndim else gain
        accumulate_growth(self.stats, h=h, after=after, gain=gain)

    def expert(self, group: ExpertGroup) -> None:
        h = self.h.index_select(0, group.rows)
        gated_norm = accumulate_expert(
            self.stats,
            group.expert,
            x=group.x,
            h=h,
            m=group.m,
            y=group.y,
            g=group.g,
            projected=group.projected(),
            scratch=self.scratch,
        )
        self.gated_norms.append((group.rows, group.slots, gated_norm))
        lengths = torch.linalg.vector_norm(h.float(), dim=-1).clamp_min(_SHORTEST)
        weights = group.g * self.share**0.5 / lengths
        self.moments.add(group.expert, group.padded_m, weights)
        self.means.add(group.expert, group.padded_m, weights)
        self.sampled.append(sampled(group, self.share))

    def _round(self, after: torch.Tensor, gain: torch.Tensor | None) -> None:
        """Take down what rounding would do to the tokens ``after`` [tokens, hidden] the block."""
        for tokens in self.sampled:
            stream = after[tokens.rows].float().square().sum(dim=-1)
            if gain is not None:  # Of every token, or the same for all.
                stream = stream / (gain[tokens.rows] if gain.ndim else gain)
            weights = self.experts.computed(tokens.expert, tokens.x.dtype)
            self.rounding.add(tokens, stream, weights, self.experts.family.activation)
        self.sampled.clear()

    def eliminations(
        self, sums: Mapping[str, LayerStatistics], norms: Mapping[str, torch.Tensor]
    ) -> dict[str, Elimination]:
        """The best order of cuts in the layer for each of ORDER_PRIORS, after its last token;
        ``norms``: WEIGHT_NORMS, [experts, width]."""
        for expert in range(len(self.experts)):
            self.moments.finish(expert, self._down(expert))
        growth = _growth(sums)
        single = own_losses(self.moments, growth)
        unseen = prior(single, norms)
        return {
            score: eliminate(self.moments, weight * unseen, growth)
            for score, weight in ORDER_PRIORS.items()
        }

    def mean_outputs(self, sums: Mapping[str, LayerStatistics]) -> dict[str, torch.Tensor]:
        """MEANS of the layer."""
        growth, every = _growth(sums), range(len(self.experts))
        taken_off = [self.means.taken_off(e, self._down(e), growth) for e in every]
        values = self.means.means(), torch.tensor(taken_off, dtype=torch.float64)
        return dict(zip(MEANS, values, strict=True))

    def _down(self, expert: int) -> torch.Tensor:
        return self.experts[expert].weight("down").float()

    def roundings(self, sums: Mapping[str, LayerStatistics]) -> dict[str, torch.Tensor]:
        """ROUNDING of the layer, float64 [experts, width] each."""
        domains = list(sums.values())
        squares = torch.stack([stats[INPUT_SUM] for stats in domains]).sum(dim=0)
        tokens = torch.stack([stats["tokens"] for stats in domains]).sum(dim=0)
        inputs = squares / tokens.clamp_min(1)[:, None]
        losses = [
            self.rounding.losses(
                expert, self.experts.computed(expert, torch.float32), inputs[expert]
            )
            for expert in range(len(self.experts))
        ]
        return dict(zip(ROUNDING, torch.stack(losses, dim=1), strict=True))

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        """The block is done: ``chosen`` experts [tokens, top_k] (past the last one: padding),
        ``output`` of all of them together [tokens, hidden]."""
        places = chosen.view(self.sequences, -1)
        use = torch.zeros(self.sequences, len(self.experts) + 1, device=chosen.device)
        use.scatter_add_(1, places, torch.ones_like(places, dtype=use.dtype))
        self.uses.append(use[:, :-1].cpu())  # the last column are padding's choices
        gated = torch.zeros(chosen.shape, dtype=torch.float32, device=chosen.device)
        for rows, slots, gated_norm in self.gated_norms:
            gated[rows, slots] = gated_norm
        values = (self.h, output, chosen, gated)
        kept = self.experts.active
        h, output, chosen, gated = values if kept is None else (v[kept] for v in values)
        accumulate_tokens(self.stats, h=h, routed=output, experts=chosen, gated_norm=gated)


def _growth(sums: Mapping[str, LayerStatistics]) -> float:
    """||h'||^2 / ||h||^2 of the layer's block, over all domains."""
    logs = [stats[GROWTH_SUM][0] / stats[GROWTH_SUM][1].clamp_min(1) for stats in sums.values()]
    return float(torch.stack(logs).mean().exp())


def observe(
    layer: nn.Module, config: ModelConfig, index: int, info: Mapping[str, Any]
) -> MoeObserver:
    """Watch ``layer``, which is number ``index`` of ``config``'s model."""
    modules = norms_of(layer, config, index)
    scale = getattr(layer, "layer_scalar", None)
    gain = RoutedGain(modules, scale, config.multipliers.residual)
    observer = MoeObserver(routed_experts(layer), gain, info)
    # Where the dense MLP runs beside the experts, they have a norm of their own.
    before = modules.get("routed_norm", modules["post_attention_norm"])
    before.register_forward_pre_hook(observer.residual)
    return observer


def norms_of(layer: nn.Module, config: ModelConfig, index: int) -> dict[str, nn.Module]:
    """The norms of decoder layer ``layer`` by their roles (`TensorSpec.role`)."""
    prefix = config.layer_prefix(index)
    return {
        spec.role: layer.get_submodule(spec.name.removeprefix(prefix).removesuffix(".weight"))
        for spec in expected_tensors(config, without_experts=config.expert_widths)
        if spec.layer == index and spec.role.endswith("norm") and spec.part == "norms"
    }

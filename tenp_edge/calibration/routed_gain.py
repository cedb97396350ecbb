"""What becomes of the routed experts' sum on its way into the residual stream.

    r = sum of g y ── (norm) ── b ── (+ dense MLP) ── t ── (norm) ── (layer scale) ── added

Where nothing stands between, r is added as it is, or times a number of the model's. Where norms do,
an error of r counts by what they make of r: |u| / |r|, with u the part of what is added that comes
from r. (A norm also turns an error along r into nothing; that is not counted.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LEAST = 1e-20


class RoutedGain:
    """|u|^2 / |r|^2 of the tokens of the last forward; ``modules``: of one layer, by role;
    ``multiplier``: of all that a block adds (`Multipliers.residual`)."""

    def __init__(
        self, modules: dict[str, nn.Module], scale: torch.Tensor | None, multiplier: float = 1.0
    ) -> None:
        self._scale, self._multiplier = scale, multiplier
        self._seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._norm = modules.get("block_out_norm")
        for role in ("routed_out_norm", "block_out_norm"):
            if role in modules:
                modules[role].register_forward_hook(self._hook(role))

    def _hook(self, role: str) -> Any:
        def see(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            hidden = output.shape[-1]
            inputs = arguments[0].reshape(-1, hidden).float()
            self._seen[role] = inputs, output.reshape(-1, hidden).float()

        return see

    def squared(self) -> torch.Tensor | None:
        """float32 [tokens], or one number for all; None where r is added as it is."""
        if "routed_out_norm" not in self._seen:
            same = self._multiplier == 1.0
            return None if same else torch.tensor(self._multiplier).square()
        routed, part = self._seen["routed_out_norm"]
        if self._norm is not None:
            whole, _ = self._seen["block_out_norm"]
            norm: Any = self._norm
            mean = whole.square().mean(dim=-1, keepdim=True) + norm.eps
            part = part * norm.weight.float() * mean.rsqrt()
        if self._scale is not None:
            part = part * self._scale.float()
        return part.square().sum(-1) / routed.square().sum(-1).clamp_min(_LEAST)

"""What every matrix outside the routed experts is fed: sums of squared inputs, for quantisation.

An importance matrix weighs a matrix's columns by the mean square of the inputs they meet. Those of
the routed experts are among the experts' own sums; here are attention, shared experts and dense
layers. Embeddings and the output matrix have none, as in llama.cpp's own tool.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import torch
from torch import nn

from tenp_edge.calibration.statistics import sum_of_squares
from tenp_edge.forward.scratch import Scratch
from tenp_edge.forward.streaming import name_in_memory
from tenp_edge.models import ModelConfig, expected_tensors

# Roles of `TensorSpec`. kv_b is left out: llama.cpp runs it as two matrices with other inputs.
ROLES = frozenset(
    "q k v o q_a q_b kv_a conv_in conv_out ssm_in ssm_out shared_gate shared_up shared_gate_up "
    "shared_down mlp_gate mlp_up mlp_down delta_qkvz delta_ba delta_qkv delta_z delta_a delta_b "
    "delta_out".split()
)


def matrix_roles(config: ModelConfig, layer: int) -> dict[str, str]:
    """Modules of decoder layer ``layer`` ("self_attn.q_proj") -> role, for roles in ROLES."""
    prefix = config.layer_prefix(layer)
    return {
        name_in_memory(config, spec).removeprefix(prefix).removesuffix(".weight"): spec.role
        for spec in expected_tensors(config)
        if spec.layer == layer and spec.expert is None and spec.role in ROLES
    }


class InputObserver:
    """Hooks on a layer's matrices. ``sums``: domain -> role -> float64 [inputs]."""

    def __init__(self, layer: nn.Module, roles: Mapping[str, str]) -> None:
        self.sums: dict[str, dict[str, torch.Tensor]] = {}
        self._scratch = Scratch()
        for name, role in roles.items():
            layer.get_submodule(name).register_forward_pre_hook(self._hook(role))

    def begin(self, domain: str, active: torch.Tensor) -> None:
        """The next forward's tokens belong to ``domain``; those not ``active`` (bool [tokens]) are
        padding."""
        self._current = self.sums.setdefault(domain, {})
        self._active = None if bool(active.all()) else active
        self._last: tuple[weakref.ref[torch.Tensor], torch.Tensor] | None = None

    def _hook(self, role: str) -> _Hook:
        def observe(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            total = self._squares(arguments[0])
            known = self._current.get(role)
            self._current[role] = total if known is None else known + total

        return observe

    def _squares(self, given: torch.Tensor) -> torch.Tensor:
        """Of the real tokens; q, k and v are given the same tensor, which is summed up once."""
        if self._last is None or self._last[0]() is not given:
            rows = given.reshape(-1, given.shape[-1])
            self._last = weakref.ref(given), sum_of_squares(rows, self._scratch, self._active)
        return self._last[1]


_Hook = Callable[[nn.Module, tuple[torch.Tensor, ...]], None]

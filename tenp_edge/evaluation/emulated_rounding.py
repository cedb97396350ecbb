"""What rounding does to a large model's experts, without encoding them.

Encoders of few bits take a second for a million weights, and a layer may have 600 million. What a
type does to a matrix is known from sampled rows (`rounding.sampled_errors`): its error's size,
beside the matrix, each column weighed by what it is multiplied with. So a quick rounding stands for
the type's: to 15 levels in blocks of a row, its error made as large as the type's. Errors of
rounding hardly depend on each other, and what they cost depends on their size: the tests compare
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import gcd

import torch

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import ModelSource, Rows
from tenp_edge.models import ModelConfig, TensorSpec

_LEVELS = 7  # on each side of 0
_BLOCK = 32

# (layer, expert, projection) -> the relative error; 0: it is not rounded.
ExpertError = Callable[[int, int, str], float]


@dataclass(frozen=True)
class EmulatedExperts:
    """``source`` with the error of rounding in its experts (a `WeightSource`). Experts are numbered
    as in the pruned model."""

    source: ModelSource
    error: ExpertError
    imatrix: Importance | None

    stored_dtype = None

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self.source.tensors

    def read(self, name: str) -> torch.Tensor:
        return self.source.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.source.read_rows(name, start, stop)

    def held(self, name: str) -> Rows:
        return self.source.held(name)

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        weights = self.source.expert(layer, expert)
        if not self.config.expert_widths[layer][expert]:
            return weights
        return ExpertWeights.of(
            {part: self._rounded(weights, layer, expert, part) for part in self.config.expert_parts}
        )

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return partial(self.expert, layer)

    def _rounded(self, weights: ExpertWeights, layer: int, expert: int, part: str) -> torch.Tensor:
        matrix: torch.Tensor = getattr(weights, part)
        error = self.error(layer, expert, part)
        if error <= 0:
            return matrix
        squares = None if self.imatrix is None else self.imatrix.expert(layer, expert, part)
        importance = None if squares is None or not squares.tokens else squares.weights()
        return with_error(matrix, error, importance)


def with_error(
    matrix: torch.Tensor, error: float, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """``matrix`` [rows, columns], in float32, with an error E of the relative size ``error``: sum
    of E_kj^2 q_j over sum of W_kj^2 q_j, ``importance`` q [columns] (None: all alike)."""
    matrix = matrix.float()
    difference = _quickly_rounded(matrix).sub_(matrix)
    weights = torch.ones(matrix.shape[-1]) if importance is None else importance.float()
    there = float((difference.square() @ weights).sum())
    if there <= 0:
        return matrix
    wanted = error * float((matrix.square() @ weights).sum())
    return difference.mul_((wanted / there) ** 0.5).add_(matrix)


def _quickly_rounded(matrix: torch.Tensor) -> torch.Tensor:
    blocks = matrix.reshape(-1, gcd(matrix.shape[-1], _BLOCK))
    if blocks.shape[-1] < _BLOCK // 4:  # short blocks would round nothing
        blocks = matrix.reshape(-1, matrix.shape[-1])
    scales = blocks.abs().amax(-1, keepdim=True).div_(_LEVELS)
    scales[scales == 0] = 1
    return blocks.div(scales).round_().mul_(scales).view_as(matrix)

"""A quick rounding with an error as large as a type's."""

from __future__ import annotations

import pytest
import torch

from tenp_edge.evaluation.emulated_rounding import with_error


@pytest.mark.parametrize("columns", [256, 96, 44, 7])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("error", [3e-5, 0.06])
def test_the_error_is_as_large_as_told(columns: int, weighed: bool, error: float) -> None:
    torch.manual_seed(columns)
    matrix, importance = torch.randn(16, columns), torch.rand(columns) if weighed else None
    difference = with_error(matrix, error, importance) - matrix
    weights = torch.ones(columns) if importance is None else importance
    share = float((difference.square() @ weights).sum() / (matrix.square() @ weights).sum())
    assert share == pytest.approx(error, rel=1e-2)


def test_zeros_stay() -> None:
    assert not with_error(torch.zeros(4, 64), 0.1).any()


def test_stored_types_become_float32() -> None:
    assert with_error(torch.randn(4, 64).bfloat16(), 0.01).dtype == torch.float32

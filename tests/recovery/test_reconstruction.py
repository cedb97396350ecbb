"""The closed form of the repair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenp_edge.errors import UserError
from tenp_edge.recovery.reconstruction import Moments, repaired_down


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_down (hidden 5, width 8), m [40, 8], the weights [40], the kept neurons."""
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(5, 8, generator=generator)
    # Neurons that resemble each other, or there is nothing to take over.
    m = torch.randn(40, 4, generator=generator) @ torch.randn(4, 8, generator=generator)
    m = m.double() + 0.3 * torch.randn(40, 8, generator=generator)
    return down, m, torch.rand(40, generator=generator).double() + 0.1, torch.tensor([0, 2, 3, 7])


def moments_of(m: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In two chunks, as they come."""
    moments = Moments(m.shape[1])
    moments.add(m[:25], weight[:25])
    moments.add(m[25:], weight[25:])
    return moments.total


def test_without_ridge_it_is_the_least_squares_solution(problem: Any) -> None:
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m, weight), ridge=1e-12)
    target = (m @ down.double().T) * weight[:, None]
    expected = torch.linalg.lstsq(m[:, kept] * weight[:, None], target).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_with_all_ridge_nothing_changes(problem: Any) -> None:
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m, weight), ridge=1e12)
    torch.testing.assert_close(found.float(), down[:, kept], rtol=1e-6, atol=1e-6)


def test_between_them_it_is_the_minimum(problem: Any) -> None:
    """The gradient of the written loss is zero there."""
    down, m, weight, kept = problem
    moments = moments_of(m, weight)
    w = repaired_down(down, kept, moments, ridge=0.1).requires_grad_(True)
    damping = 0.1 * moments[kept][:, kept].diagonal().mean()
    error = (m[:, kept] @ w.T - m @ down.double().T) * weight[:, None]
    loss = error.square().sum() + damping * (w - down[:, kept].double()).square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("why", ["nothing cut", "no token"])
def test_what_stays_bit_for_bit(why: str, problem: Any) -> None:
    down, m, weight, kept = problem
    kept = torch.arange(8) if why == "nothing cut" else kept
    moments = moments_of(m, weight) * (why == "nothing cut")
    assert torch.equal(repaired_down(down, kept, moments).float(), down[:, kept])


def test_an_expert_of_few_tokens_keeps_what_they_do_not_use(problem: Any) -> None:
    """One token fixes one direction; across it the weights are the original's."""
    down, m, weight, kept = problem
    found = repaired_down(down, kept, moments_of(m[:1], weight[:1]), ridge=1e-3)
    change, along = found - down[:, kept].double(), m[0, kept] / m[0, kept].norm()
    assert float(change.norm()) > 0
    across = change - (change @ along)[:, None] * along
    assert float(across.abs().max()) < 1e-9 * float(change.abs().max()) + 1e-12


def test_a_ridge_below_the_arithmetic_is_refused() -> None:
    moments = torch.ones(3, 3, dtype=torch.float64)
    moments[0, 0] = 1 - 1e-9
    with pytest.raises(UserError) as caught:
        repaired_down(torch.ones(2, 3), torch.tensor([0, 1]), moments, ridge=1e-15)
    assert caught.value.message == (
        "--set repair-ridge=1e-15 is too small: an expert's moments are singular"
    )

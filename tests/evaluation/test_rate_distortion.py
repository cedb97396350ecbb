"""The least loss for a number of bits, against what Shannon's formula says in closed form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import calibrating

from tenp_edge.calibration.statistics import ROUNDING
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.rate_distortion import (
    Neurons,
    expert_neurons,
    least_expert_loss,
    least_loss,
)


def uncut(energies: torch.Tensor) -> list[Neurons]:
    """One neuron that must stay."""
    return [Neurons(energies[None], torch.tensor([torch.inf]))]


def test_equal_weights_have_equal_bits() -> None:
    energies = uncut(torch.full((1000,), 3.0))
    assert least_loss(energies, 4000) == pytest.approx(1000 * 3 * 2**-8, rel=1e-5)
    assert least_loss(energies, 0) == pytest.approx(3000, rel=1e-5)


def test_two_kinds_have_one_level() -> None:
    """Energies 16 and 1: at 4 bits each the louder has two more than the other; with 1 bit a pair
    the quiet ones get none."""
    energies = uncut(torch.tensor([16.0, 1.0] * 100))
    level = 2.0 ** (2 - 2 * 4)  # log2 of the geometric mean 4, less two a bit
    assert least_loss(energies, 800) == pytest.approx(200 * level, rel=1e-5)
    assert least_loss(energies, 100) == pytest.approx(100 * (4 + 1), rel=1e-5)


def test_six_decibels_a_bit() -> None:
    energies = uncut(torch.rand(500, generator=torch.Generator().manual_seed(0)) + 0.5)
    losses = [least_loss(energies, 500 * bits) for bits in (3, 4, 5)]
    assert losses[0] / losses[1] == pytest.approx(4, rel=1e-4)
    assert losses[1] / losses[2] == pytest.approx(4, rel=1e-4)


def test_no_quantised_gaussian_is_better() -> None:
    """Rounding to the nearest of 2^4 even steps, the steps as wide as is best."""
    weights = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    steps = torch.linspace(0.1, 0.6, 51)
    errors = [(weights - _rounded(weights, float(step))).square().sum() for step in steps]
    bound = least_loss(uncut(torch.ones(20000)), 4 * 20000)
    assert bound < float(min(errors)) < 4 * bound


def _rounded(weights: torch.Tensor, step: float) -> torch.Tensor:
    return ((weights / step - 0.5).round().clamp(-8, 7) + 0.5) * step


def test_a_cheap_neuron_is_cut_and_its_bits_go_to_the_others() -> None:
    energies = torch.ones(2, 100)
    kept = Neurons(energies, torch.tensor([torch.inf, torch.inf]))
    cheap = Neurons(energies, torch.tensor([torch.inf, 0.1]))
    assert least_loss([kept], 400) == pytest.approx(200 * 2**-4, rel=1e-5)
    assert least_loss([cheap], 400) == pytest.approx(100 * 2**-8 + 0.1, rel=1e-4)


def test_the_energies_of_experts_are_what_their_rounding_costs(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    statistics = calibrating.run(checkpoint.path, tmp_path, calibrating.two_domains())
    total, hidden = 0.0, checkpoint.config.hidden_size
    layers = zip(checkpoint.config.moe_layers, expert_neurons(checkpoint, statistics), strict=True)
    for layer, neurons in layers:
        for part, name in enumerate(ROUNDING):
            of_matrix = neurons.energies[:, part * hidden : (part + 1) * hidden].sum(dim=1)
            expected = statistics.rounding(layer)[name].flatten().float()
            torch.testing.assert_close(of_matrix, expected, rtol=1e-4, atol=1e-9)
        total += float(neurons.energies.sum())
    least = least_expert_loss(checkpoint, statistics)
    nbytes = 3 * hidden * checkpoint.config.expert_neurons // 2  # four bits a weight
    assert 0 < least(nbytes) < total * 2**-8
    assert least(nbytes) < least(nbytes // 2)

"""What rounding is said to cost, against errors that are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny
from support.calibrating import domain, run

from tenp_edge.calibration.rounding import RoundingMoments, Sampled, sampled
from tenp_edge.calibration.statistics import ROUNDING
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.forward.experts import ExpertGroup, neurons, slopes
from tenp_edge.models.family import Activation

WIDTH, HIDDEN, TOKENS = 12, 8, 40
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh", "swiglu_oai")


class Expert:
    """Random weights and tokens: x [tokens, hidden], g^2 / ||h'||^2 [tokens]."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        gate, up, down = drawn(WIDTH, HIDDEN), drawn(WIDTH, HIDDEN), drawn(HIDDEN, WIDTH)
        self.weights = ExpertWeights(gate, up, down)
        self.x, self.stream = drawn(TOKENS, HIDDEN), 1 + drawn(TOKENS).abs()
        self.shares = drawn(TOKENS).square() / TOKENS
        self.generator = generator

    def predicted(self, activation: Activation) -> torch.Tensor:
        moments = RoundingMoments(2, WIDTH)
        tokens = Sampled(1, torch.arange(TOKENS), self.x, self.shares)
        moments.add(tokens, self.stream, self.weights, activation)
        assert not moments.sums[:, 0].any()
        return moments.losses(1, self.weights, self.x.square().mean(dim=0))

    def measured(self, part: str, relative: float, activation: Activation) -> float:
        """Mean over draws of sum of shares ||y' - y||^2 / stream, for errors of that size."""
        whole, total, draws = self.output(self.weights, activation), 0.0, 1500
        matrix = getattr(self.weights, part)
        for _ in range(draws):
            error = torch.randn(matrix.shape, generator=self.generator) * relative * matrix
            output = self.output(replace(self.weights, **{part: matrix + error}), activation)
            moved = (output - whole).square().sum(dim=1)
            total += float((self.shares * moved / self.stream).sum())
        return total / draws

    def output(self, weights: ExpertWeights, activation: Activation) -> torch.Tensor:
        return neurons(weights, self.x, activation) @ weights.down.T


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("number", "part"), [*enumerate(("gate", "up", "down"))])
def test_losses_are_those_of_small_errors(number: int, part: str, activation: Activation) -> None:
    """Slopes and inputs are taken as independent, which random ones nearly are."""
    expert, relative = Expert(), 0.01
    predicted = float(expert.predicted(activation)[number].sum()) * relative**2
    exact = 0.1 if part == "down" else 0.5
    assert expert.measured(part, relative, activation) == pytest.approx(predicted, rel=exact)


@pytest.mark.parametrize(("number", "part"), [(1, "up"), (2, "down")])
def test_losses_without_a_gate(number: int, part: str) -> None:
    expert, relative = Expert(), 0.01
    expert.weights = replace(expert.weights, gate=None)
    predicted = expert.predicted("relu2")
    assert not predicted[0].any()
    exact = 0.1 if part == "down" else 0.5
    found = expert.measured(part, relative, "relu2")
    assert found == pytest.approx(float(predicted[number].sum()) * relative**2, rel=exact)


def test_slopes_are_the_derivatives() -> None:
    expert = Expert()
    gate = (expert.x @ expert.weights.gate.T).requires_grad_()
    up = (expert.x @ expert.weights.up.T).requires_grad_()
    (torch.nn.functional.silu(gate) * up).sum().backward()
    for found, exact in zip(slopes(expert.weights, expert.x), (gate.grad, up.grad), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_a_sample_stands_for_all_tokens() -> None:
    count = 1000
    g, x = torch.rand(count), torch.zeros(count, 2)
    group = ExpertGroup(3, torch.arange(count), torch.zeros(count), x, x, x, g, torch.zeros(2, 2))
    found = sampled(group, share=0.5)
    assert (found.expert, len(found.rows)) == (3, 62) and len(found.x) == len(found.shares) == 62
    assert float(found.shares.sum()) == pytest.approx(0.5 * float(g.square().sum()), rel=0.2)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    model = tmp_path_factory.mktemp("model")
    tiny.make(model, "qwen3_moe")
    return run(model, tmp_path_factory.mktemp("work"), [domain("code", 3), domain("prose", 2)])


def test_calibration_keeps_them(statistics: Statistics) -> None:
    assert statistics.has_rounding
    for layer in statistics.layers:
        sums = statistics.rounding(layer)
        shape = (int(statistics.info["experts"]), int(statistics.info["width"]))
        reached = sum(statistics.layer(d, layer)["tokens"] for d in statistics.domains) > 0
        for name in ROUNDING:
            assert sums[name].shape == shape
            assert bool((sums[name][reached] > 0).any(dim=1).all())
            assert not sums[name][~reached].any()


def test_statistics_without_them_say_so(statistics: Statistics, tmp_path: Path) -> None:
    stored = {k: v for k, v in statistics.stored.items() if "rounding" not in k}
    assert not replace(statistics, stored=stored).has_rounding
    some = {k: v for k, v in statistics.stored.items() if k != "layers.0.rounding_up"}
    assert not replace(statistics, stored=some).has_rounding

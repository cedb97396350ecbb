"""The joint order of cuts: its losses are those of the definition, its choice the cheapest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.elimination import JointMoments, eliminate, own_losses, prior
from tenp_edge.calibration.merging import merge_statistics
from tenp_edge.calibration.statistics import WEIGHT_NORMS
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.experts import ExpertGroup
from tenp_edge.forward.text_batch import Domain
from tenp_edge.forward.transformers_model import model_of
from tenp_edge.scoring.saliency import joint_places, neuron_scores

EXPERTS, WIDTH, HIDDEN, TOKENS = 2, 10, 6, 50


class Case:
    """Random tokens of every expert: m [experts, tokens, width] and their weights."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.m = torch.randn(EXPERTS, TOKENS, WIDTH, generator=generator)
        self.down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator)
        self.weights = torch.rand(EXPERTS, TOKENS, generator=generator)

    def moments(self, limit_bytes: int = 2**28) -> JointMoments:
        found = JointMoments(EXPERTS, WIDTH, torch.device("cpu"), limit_bytes)
        for expert in range(EXPERTS):
            padded = torch.nn.functional.pad(self.m[expert], (0, 0, 0, 14))
            found.add(expert, padded, self.weights[expert])
            found.finish(expert, self.down[expert])
        return found

    def loss(self, expert: int, cut: list[int]) -> float:
        """sum over tokens of |sum over the cut of w m_k down_k|^2, as defined."""
        m = (self.m[expert] * self.weights[expert][:, None])[:, cut].double()
        return float((m @ self.down[expert][:, cut].double().T).square().sum())


def no_prior() -> torch.Tensor:
    return torch.zeros(EXPERTS, WIDTH, dtype=torch.float64)


def test_losses_are_those_of_cutting_together() -> None:
    case = Case()
    found = eliminate(case.moments(), no_prior(), growth=2.0)
    for expert in range(EXPERTS):
        order = found.order[expert].tolist()
        assert sorted(order) == list(range(WIDTH))
        for width in range(WIDTH + 1):
            expected = case.loss(expert, order[width:]) / 2
            assert float(found.losses[expert, width]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_every_cut_is_the_cheapest_next() -> None:
    case = Case()
    found = eliminate(case.moments(), no_prior(), growth=1.0)
    for expert in range(EXPERTS):
        order = found.order[expert].tolist()
        for width in range(1, WIDTH + 1):
            kept, cut = order[:width], order[width:]
            losses = {k: case.loss(expert, [*cut, k]) for k in kept}
            assert losses[order[width - 1]] == pytest.approx(min(losses.values()), rel=1e-5)


def test_cancelling_neurons_go_together_and_twins_do_not() -> None:
    """1 all but undoes 0: both go for almost nothing. 3 says what 2 says: the second is dear."""
    m = torch.eye(4).repeat(8, 1)
    m[:, 1], m[:, 3] = m[:, 0], m[:, 2]
    down = torch.tensor([[3.0, -2.9, 0, 0], [0, 0, 1.0, 1.0]])
    moments = JointMoments(1, 4, torch.device("cpu"))
    moments.add(0, m, torch.ones(len(m)))
    moments.finish(0, down)
    found = eliminate(moments, torch.zeros(1, 4, dtype=torch.float64), growth=1.0)
    order, tokens = found.order[0].tolist(), 8
    assert order[-1] in (2, 3)
    assert float(found.losses[0, 3]) == pytest.approx(tokens)  # one of the twins
    assert float(found.losses[0, 2]) == pytest.approx(4 * tokens)  # both: four times, not twice
    assert set(order[:2]) == {0, 1}
    assert float(found.losses[0, 0] - found.losses[0, 2]) == pytest.approx(0.01 * tokens, rel=1e-3)


@pytest.mark.parametrize("size", [5, 4])
def test_blocks_bound_the_memory_and_keep_their_own_cross_terms(size: int) -> None:
    case = Case()
    moments = case.moments(4 * EXPERTS * WIDTH * size)
    assert moments.sums.numel() <= EXPERTS * -(-WIDTH // size) * size * size
    inside = torch.arange(WIDTH) // moments.size
    whole = case.moments()
    whole.sums *= (inside[:, None] == inside[None]).float()
    expected = eliminate(whole, no_prior(), growth=1.0)
    found = eliminate(moments, no_prior(), growth=1.0)
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-6)


def test_the_prior_decides_over_what_text_did_not_need() -> None:
    case = Case()
    case.m[0] *= 1e-6
    norms = {name: torch.rand(EXPERTS, WIDTH) + 0.1 for name in WEIGHT_NORMS}
    moments = case.moments()
    insurance = prior(own_losses(moments, 1.0), norms)
    order = eliminate(moments, insurance, growth=1.0).order[0]
    sizes = torch.stack([*norms.values()]).prod(dim=0)
    assert torch.equal(order, sizes[0].argsort(descending=True))


def test_the_prior_follows_the_norms_at_the_level_of_an_ordinary_neuron() -> None:
    own = torch.tensor([[1e-4, 1e-6, 0.0], [1e4, 1e-6, 0.0]], dtype=torch.float64)
    norms = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]])
    ones = torch.ones_like(norms)
    found = prior(own, {"gate_norm": norms, "up_norm": ones, "down_norm": ones})
    assert float(found.mean()) == pytest.approx((1e-4 * 1e-6 * 1e4 * 1e-6) ** 0.25)
    torch.testing.assert_close(found / found[0, 0], norms.double().square())


def test_without_a_gate_a_neuron_counts_ups_row_twice() -> None:
    """E relu(u)^4 of u from a row of twice the length is 16 times as much."""
    norms = torch.tensor([[1.0, 2.0]])
    found = prior(torch.ones(1, 2), {"up_norm": norms, "down_norm": torch.ones_like(norms)})
    torch.testing.assert_close(found / found[0, 0], torch.tensor([[1.0, 16.0]]).double())


# -- in a calibration ------------------------------------------------------------------------------


def domains() -> list[Domain]:
    """Two domains of different size; the last sequence of each is padded."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for name, count in (("code", 4), ("prose", 2)):
        tokens = torch.randint(0, tiny.VOCAB, (count, 32), generator=generator)
        lengths = torch.full((count,), 32)
        tokens[-1, 20:], lengths[-1] = 0, 20
        made.append(Domain(name, tokens, lengths))
    return made


class _Keeper:
    """Keeps one layer's groups with the residual streams that belong to them."""

    def __init__(self) -> None:
        self.groups: list[tuple[ExpertGroup, torch.Tensor]] = []

    def expert(self, group: ExpertGroup) -> None:
        self.groups.append((group, self.h[group.rows]))

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        pass

    def residual(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self.h = arguments[0].reshape(-1, arguments[0].shape[-1])

    def loss(self, expert: int, cut: torch.Tensor) -> float:
        """sum over tokens of |what is cut|^2 / |h|^2."""
        total = 0.0
        for group, h in self.groups:
            if group.expert == expert:
                lost = group.g[:, None] * (group.m[:, cut] @ group.down[:, cut].T)
                total += float((lost.double().norm(dim=1) / h.double().norm(dim=1)).square().sum())
        return total


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_calibration_stores_the_losses_of_the_whole_model(tmp_path: Path, family: str) -> None:
    path = tiny.make(tmp_path / "model", family)
    checkpoint = Checkpoint(path)
    found = calibrate(checkpoint, domains(), tmp_path / "work", dtype="float32", batch_tokens=50)
    layer = checkpoint.config.moe_layers[-1]
    elimination, width = found.elimination(layer, "joint"), checkpoint.config.moe_intermediate_size
    expert = int(elimination.losses[:, 0].argmax())
    model: Any = model_of(ModelSource(checkpoint), torch.float32)
    block = model.model.layers[layer]
    kept = (0, width // 2, width - 1)
    expected = torch.zeros(len(kept), dtype=torch.float64)
    for domain in domains():
        keeper = _Keeper()
        block.mlp.experts.observer = keeper
        hook = block.post_attention_layernorm.register_forward_pre_hook(keeper.residual)
        for tokens, length in zip(domain.tokens, domain.lengths.tolist(), strict=True):
            model(input_ids=tokens[None, :length])
        hook.remove()
        cuts = [elimination.order[expert, count:] for count in kept]
        losses = torch.tensor([keeper.loss(expert, cut) for cut in cuts], dtype=torch.float64)
        expected += losses / int(domain.lengths.sum()) / 2
    stored = elimination.losses[expert, list(kept)]
    torch.testing.assert_close(stored, expected / _growth(found, layer), rtol=2e-4, atol=1e-12)


def _growth(statistics: Statistics, layer: int) -> float:
    """||h'||^2 / ||h||^2 of an ordinary token, every domain counting the same."""
    sums = [statistics.layer(domain, layer)["growth"] for domain in statistics.domains]
    return float(torch.stack([total / count for total, count in sums]).mean().exp())


def test_places_follow_the_order_and_merged_statistics_lack_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", "qwen3_moe"))
    found = calibrate(checkpoint, domains(), tmp_path / "work", dtype="float32")
    elimination = found.elimination(1, "joint")
    reached = elimination.losses[:, 0] > 0
    places = neuron_scores(found, 1, "joint")
    assert torch.equal(places[reached], joint_places(found, 1, "joint")[reached])
    assert torch.equal(places.argsort(dim=1, descending=True)[reached], elimination.order[reached])
    other = replace(found, info={**found.info, "data_sha256": "of other text"})
    merged = merge_statistics([found, other], tmp_path / "merged")
    assert not merged.has_elimination
    with pytest.raises(UserError, match="the statistics have no joint order"):
        neuron_scores(merged, 1, "joint")

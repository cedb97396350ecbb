"""Scores: the equations of the method, transcribed over tokens, against the sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.synthetic import random_layer, write_statistics

from tenp_edge.calibration import elimination
from tenp_edge.calibration.statistics import (
    WEIGHT_NORMS,
    LayerStatistics,
    accumulate_expert,
    accumulate_growth,
    accumulate_tokens,
    make_empty,
)
from tenp_edge.calibration.storage import Statistics, layer_tensors, write_tensors
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.models.headers import read_header
from tenp_edge.scoring.expert_scores import EXPERT_SCORES
from tenp_edge.scoring.losses import cut_losses, prior_losses
from tenp_edge.scoring.neuron_scores import NEURON_SCORES
from tenp_edge.scoring.saliency import expert_scores, neuron_scores, ranking_scores, tokens_routed

Tokens = dict[str, torch.Tensor]
HIDDEN, WIDTH, COUNT = 12, 7, 40


@pytest.fixture(scope="module", params=["gated", "ungated"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    """One expert's tokens, float64, and its weights: m = silu(gate) up, or relu(up)^2."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gate_w, up_w, down_w = draw(WIDTH, HIDDEN), draw(WIDTH, HIDDEN), draw(HIDDEN, WIDTH)
    x, h, g = draw(COUNT, HIDDEN), draw(COUNT, HIDDEN), draw(COUNT).abs()
    is_gated = request.param == "gated"
    gate = torch.nn.functional.silu(x @ gate_w.T)
    m = gate * (x @ up_w.T) if is_gated else (x @ up_w.T).clamp_min(0).square()
    return ({"gate_w": gate_w} if is_gated else {}) | {
        "x": x,
        "h": h,
        "g": g,
        "m": m,
        "y": m @ down_w.T,
        "up_w": up_w,
        "w": down_w,
        "after": 3 * h + draw(COUNT, HIDDEN),
        "slope": draw(COUNT, HIDDEN) @ down_w,  # dL/dm = dL/dy W_down, of a random dL/dy
    }


@pytest.fixture(scope="module")
def sums(tokens: Tokens) -> tuple[LayerStatistics, dict[str, torch.Tensor]]:
    """The same tokens through the calibration's own accumulation, as expert 1 of 2."""
    stats = make_empty(2, WIDTH)
    t = tokens
    gated_norm = accumulate_expert(
        stats, 1, x=t["x"], h=t["h"], m=t["m"], y=t["y"], g=t["g"], projected=t["y"] @ t["w"]
    )
    routed = t["g"][:, None] * t["y"]
    ones = torch.ones(COUNT, 1, dtype=torch.int64)
    accumulate_tokens(stats, h=t["h"], routed=routed, experts=ones, gated_norm=gated_norm[:, None])
    accumulate_growth(stats, h=t["h"], after=t["after"])
    rows = {"gate_norm": "gate_w", "up_norm": "up_w"}
    norms = {k: t[name].norm(dim=1).expand(2, -1) for k, name in rows.items() if name in t}
    norms["down_norm"] = t["w"].norm(dim=0).expand(2, -1)
    for name, value in (
        ("gradient_sq", t["slope"].square()),
        ("taylor", (t["m"] * t["slope"]).abs()),
    ):
        stats = LayerStatistics({**stats.sums, name: torch.stack([value.sum(0) * 0, value.sum(0)])})
    return stats, norms


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def rows_of(t: Tokens) -> torch.Tensor:
    """A neuron's weights: its rows of gate (if any) and up and its column of down, end to end."""
    return torch.cat([*(t[name] for name in ("gate_w", "up_w") if name in t), t["w"].T], dim=1)


EXPERT_EQUATIONS: dict[str, Callable[[Tokens], torch.Tensor]] = {
    "tenp": lambda t: (t["g"] * t["y"].norm(dim=1) * (1 - cosine(t["x"], t["y"]))).sum(),
    "frequency": lambda t: torch.tensor(float(COUNT)),
    "gate": lambda t: t["g"].sum(),
    "ean": lambda t: t["y"].norm(dim=1).sum(),
    "reap": lambda t: (t["g"] * t["y"].norm(dim=1)).mean(),
    "man": lambda t: t["y"].norm(dim=1).mean(),
    "msan": lambda t: t["y"].square().sum(dim=1).mean(),
    "easy-ep": lambda t: (
        t["g"]
        * t["y"].norm(dim=1)
        * (1 - cosine(t["h"], t["h"] + t["g"][:, None] * t["y"])).clamp_min(0)
    ).sum(),
    "gated-norm": lambda t: (t["g"] * t["y"].norm(dim=1)).sum(),
    "tenp-residual": lambda t: (
        t["g"] * t["y"].norm(dim=1) * (1 - cosine(t["h"], t["h"] + t["g"][:, None] * t["y"]))
    ).sum(),
    "magnitude": lambda t: rows_of(t).norm(),
}


def contribution(t: Tokens) -> torch.Tensor:
    """m_k <w_k, y> / |y| of every token, [tokens, width], from single neurons."""
    parts = t["m"][:, :, None] * t["w"].T[None]  # (tokens, width, hidden)
    return (parts * t["y"][:, None, :]).sum(-1) / t["y"].norm(dim=1)[:, None]


def gated(t: Tokens) -> torch.Tensor:
    return t["g"][:, None] * t["m"]


NEURON_EQUATIONS: dict[str, Callable[[Tokens], torch.Tensor]] = {
    "enp": lambda t: contribution(t).mean(dim=0),
    "enp-abs": lambda t: contribution(t).abs().mean(dim=0),
    "enp-sum": lambda t: contribution(t).sum(dim=0),
    "energy": lambda t: gated(t).square().sum(dim=0) * t["w"].square().sum(dim=0),
    "relative": lambda t: (
        (gated(t).square() / t["h"].square().sum(dim=1)[:, None]).sum(dim=0)
        * t["w"].square().sum(dim=0)
        * t["h"].square().sum(dim=1).log().sub(t["after"].square().sum(dim=1).log()).mean().exp()
    ),
    "camera-p": lambda t: (
        t["w"].square().sum(dim=0)
        * (0.1 * gated(t).square().sum(dim=0) + 0.9 * gated(t).abs().amax(dim=0).square())
    ),
    "flap": lambda t: t["m"].var(dim=0, correction=0) * t["w"].square().sum(dim=0),
    "wanda": lambda t: t["m"].norm(dim=0) * t["w"].norm(dim=0),
    "heapr": lambda t: t["m"].square().mean(dim=0) * t["slope"].square().mean(dim=0),
    "heapr-sum": lambda t: COUNT * t["m"].square().mean(dim=0) * t["slope"].square().mean(dim=0),
    "taylor": lambda t: (t["m"] * t["slope"]).abs().sum(dim=0),
    "magnitude": lambda t: rows_of(t).norm(dim=1),
}


def test_every_score_has_an_equation() -> None:
    assert set(EXPERT_SCORES) == set(EXPERT_EQUATIONS) | {"random"}
    # calibration/test_elimination.py has the orders.
    computed = {name for name, score in NEURON_SCORES.items() if score.needs != "elimination"}
    assert computed == set(NEURON_EQUATIONS) | {"random"}


@pytest.mark.parametrize("name", EXPERT_EQUATIONS)
def test_expert_score_is_its_equation(
    name: str, tokens: Tokens, sums: tuple[LayerStatistics, dict[str, torch.Tensor]]
) -> None:
    value = EXPERT_SCORES[name].evaluate(*sums)[1]
    expected = EXPERT_EQUATIONS[name](tokens).double()
    torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", NEURON_EQUATIONS)
def test_neuron_score_is_its_equation(
    name: str, tokens: Tokens, sums: tuple[LayerStatistics, dict[str, torch.Tensor]]
) -> None:
    value = NEURON_SCORES[name].evaluate(*sums)[1]
    scale = float(NEURON_EQUATIONS[name](tokens).abs().max())
    expected = NEURON_EQUATIONS[name](tokens)
    torch.testing.assert_close(value / scale, expected / scale, rtol=2e-6, atol=2e-6)


def test_enp_sums_to_the_mean_output_norm(
    tokens: Tokens, sums: tuple[LayerStatistics, dict[str, torch.Tensor]]
) -> None:
    total = NEURON_SCORES["enp"].evaluate(*sums)[1].sum()
    torch.testing.assert_close(total, tokens["y"].norm(dim=1).mean(), rtol=1e-6, atol=0)


def test_scores_of_one_token_by_hand() -> None:
    """m = (3, 4), W_down = identity: y = (3, 4), |y| = 5; x = (3, 4), h = (0, 1), g = 2."""
    stats = make_empty(1, 2)
    m = torch.tensor([[3.0, 4.0]])
    accumulate_expert(
        stats,
        0,
        x=m,
        h=torch.tensor([[0.0, 1.0]]),
        m=m,
        y=m,
        g=torch.tensor([2.0]),
        projected=m,
    )
    norms = {name: torch.ones(1, 2).double() for name in ("gate_norm", "up_norm", "down_norm")}
    assert EXPERT_SCORES["tenp"].evaluate(stats, norms)[0] == pytest.approx(0, abs=1e-6)  # cos = 1
    assert EXPERT_SCORES["reap"].evaluate(stats, norms)[0] == pytest.approx(10)
    assert NEURON_SCORES["enp"].evaluate(stats, norms)[0].tolist() == pytest.approx([1.8, 3.2])
    assert NEURON_SCORES["energy"].evaluate(stats, norms)[0].tolist() == pytest.approx([36, 64])
    assert NEURON_SCORES["camera-p"].evaluate(stats, norms)[0].tolist() == pytest.approx([36, 64])
    assert NEURON_SCORES["flap"].evaluate(stats, norms)[0].tolist() == pytest.approx(
        [0, 0], abs=1e-6
    )


# -- over domains ----------------------------------------------------------------------------------


def statistics_of(checkpoint_of: Callable[[str], Path], directory: Path) -> Statistics:
    """qwen3_moe's shape; expert 2 unreached by prose, expert 5 by anyone."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        for expert in [5] if domain == "code" else [2, 5]:
            for value in (v for name, v in stats.sums.items() if name != "growth"):
                value[expert] = 0

    return write_statistics(directory, checkpoint.config, checkpoint.fingerprint, edit=edit)


def test_expert_scores_add_normalised_domains(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    code, prose = (statistics.layer(domain, 1)["tenp"] for domain in ("code", "prose"))
    expected = code / code.square().sum().sqrt() + prose / prose.square().sum().sqrt()
    torch.testing.assert_close(expert_scores(statistics, 1, "tenp"), expected)


def test_neuron_scores_skip_a_domain_that_missed_the_expert(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    code, prose = (statistics.layer(domain, 1) for domain in ("code", "prose"))
    score = neuron_scores(statistics, 1, "enp")

    def unit(stats: LayerStatistics, expert: int) -> torch.Tensor:
        mean = stats["projection"][expert] / stats["tokens"][expert]
        return mean / mean.square().sum().sqrt()

    torch.testing.assert_close(score[0], unit(code, 0) + unit(prose, 0))
    torch.testing.assert_close(score[2], unit(code, 2))


def test_an_expert_that_no_token_reached_is_ordered_by_norms(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    assert (tokens_routed(statistics, 1) == 0).tolist() == [e == 5 for e in range(8)]
    magnitude = neuron_scores(statistics, 1, "magnitude")
    assert (magnitude > 0).all()
    for name in ("enp", "energy", "flap"):
        assert torch.equal(neuron_scores(statistics, 1, name)[5], magnitude[5])


def test_random_scores_are_seeded(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    for score in (expert_scores, neuron_scores):
        assert torch.equal(score(statistics, 1, "random", 7), score(statistics, 1, "random", 7))
        assert not torch.equal(score(statistics, 1, "random", 7), score(statistics, 1, "random", 8))
        assert not torch.equal(score(statistics, 0, "random", 7), score(statistics, 1, "random", 7))


def test_ranking_scores_compare_experts(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    down = statistics.weight_norms(1)["down_norm"].square()
    energy = [
        statistics.layer(domain, 1)["gated_activation_sq"] * down / 1000
        for domain in ("code", "prose")
    ]
    torch.testing.assert_close(ranking_scores(statistics, 1, "energy"), energy[0] + energy[1])


def one_expert(m: torch.Tensor, h: torch.Tensor, after: torch.Tensor) -> LayerStatistics:
    """Statistics of tokens that one expert receives with g = 1 and W_down = identity."""
    stats = make_empty(1, m.shape[1])
    accumulate_expert(stats, 0, x=m, h=h, m=m, y=m, g=torch.ones(len(m)), projected=m)
    accumulate_growth(stats, h=h, after=after)
    return stats


def stored(
    stats: LayerStatistics, tokens: int, tmp_path: Path, **norms: torch.Tensor
) -> Statistics:
    ones = torch.ones(1, stats["activation"].shape[1]).double()
    named = layer_tensors(0, {"one": stats}, dict.fromkeys(WEIGHT_NORMS, ones) | norms)
    write_tensors(tmp_path / "statistics.safetensors", named)
    info = {"domains": {"one": {"samples": 1, "tokens": tokens}}, "layers": [0]}
    return Statistics(info, read_header(tmp_path / "statistics.safetensors"))


def test_cut_losses_by_hand(tmp_path: Path) -> None:
    """Two of four tokens reach the expert, with m = (3, 4), |y| = 5, |h| = 10 before and 20 after.

    Cutting neuron 0 alone: 9 / 400 on half of the tokens. Both: 25 / 400 on half of them; of their
    energies' sum 9 + 16 nothing is missing, as the neurons are orthogonal, but along y they add up
    to (9/5 + 16/5)^2 - (9/5)^2 - (16/5)^2 = 11.52 more.
    """
    m = torch.tensor([[3.0, 4.0]]).repeat(2, 1)
    h = torch.tensor([[10.0, 0.0]]).repeat(2, 1)
    statistics = stored(one_expert(m, h, 2 * h), 4, tmp_path)
    losses = cut_losses(statistics, 0, torch.tensor([[1, 0]]))[0]
    assert losses.tolist() == pytest.approx([(25 + 11.52) / 800, 9 / 800, 0])


def test_cut_losses_are_exact_for_neurons_of_one_direction(tmp_path: Path) -> None:
    """w_0 = w_1: what is cut is (m_0 + m_1) w, whose square the energies alone halve."""
    m, h = torch.tensor([[2.0, 2.0]]), torch.tensor([[8.0, 0.0]])
    y = torch.tensor([[4.0, 0.0]])  # W_down = [[1, 1], [0, 0]]
    stats = make_empty(1, 2)
    accumulate_expert(
        stats, 0, x=m, h=h, m=m, y=y, g=torch.ones(1), projected=torch.tensor([[4.0, 4.0]])
    )
    accumulate_growth(stats, h=h, after=h)
    losses = cut_losses(stored(stats, 1, tmp_path), 0, torch.tensor([[0, 1]]))[0]
    assert losses.tolist() == pytest.approx([16 / 64, 4 / 64, 0])


def test_unknown_score(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    with pytest.raises(UserError) as caught:
        expert_scores(statistics, 1, "best")
    assert caught.value.message == "--set expert-score=best is not known"
    assert caught.value.hint == f"--set expert-score={'|'.join(EXPERT_SCORES)}"


def test_random_layer_is_legal() -> None:
    """Guards the fixture: a variance is never negative."""
    stats = random_layer(3, 5, 1)
    count = stats["tokens"][:, None]
    assert ((stats["activation_sq"] / count) >= (stats["activation"] / count).square()).all()


def test_prior_losses_are_those_of_the_domains_mean(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = statistics_of(checkpoint_of, tmp_path)
    prior, norms = prior_losses(statistics, 1), statistics.weight_norms(1)
    said = ranking_scores(statistics, 1, "relative") / 2
    expected = elimination.prior(said, norms)
    torch.testing.assert_close(prior, expected)
    assert (prior[5] > 0).all()  # the expert that no text reached


def test_a_score_that_needs_a_backward_pass_says_so(
    tmp_path: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    statistics = write_statistics(tmp_path, checkpoint.config, checkpoint.fingerprint)
    for function in (neuron_scores, ranking_scores):
        with pytest.raises(UserError) as caught:
            function(statistics, checkpoint.config.moe_layers[0], "heapr")
        assert caught.value.message == (
            "neuron-score heapr needs a backward pass, which this calibration left out"
        )
        assert caught.value.hint == (
            "tenp-edge calibrate MODEL --gradients -o WORK, the same as before otherwise"
        )

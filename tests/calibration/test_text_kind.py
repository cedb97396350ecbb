"""Whether a calibration saw one kind of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.calibrating import domain, run
from support.synthetic import write_statistics

from tenp_edge.calibration.statistics import SEQUENCE_USE
from tenp_edge.calibration.storage import DIGEST, Statistics, load_statistics, write_tensors
from tenp_edge.calibration.text_kind import is_one_kind, use_apart
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

NOTE = (
    "the calibration saw one kind of text: the plan is for that kind. Other kinds in --data too, "
    "or --protect much (not with --scores), keep more for others, at the cost of this one"
)


@pytest.fixture
def qwen3(checkpoint_of: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(checkpoint_of("qwen3_moe"))


def statistics_with(use: torch.Tensor, checkpoint: Checkpoint, directory: Path) -> Statistics:
    """Statistics whose sequences used the experts so in every layer; two choices a token."""
    found = write_statistics(directory, checkpoint.config, checkpoint.fingerprint)
    routed = sum(float(found.layer(d, found.layers[0])["tokens"].sum()) for d in found.domains)
    names = {name: found.read(name) for name in found.stored}
    names |= {f"layers.{layer}.{SEQUENCE_USE}": use.float() for layer in found.layers}
    info = {**found.info, DIGEST: write_tensors(directory / "statistics.safetensors", names)}
    (directory / "statistics.json").write_text(json.dumps(info))
    domains = {d: {"samples": 1, "tokens": 0} for d in found.domains}
    domains[found.domains[0]]["tokens"] = round(routed / 2)
    written = load_statistics(directory)
    return replace(written, info={**written.info, "domains": domains})


def test_alike_and_nothing_in_common(qwen3: Checkpoint, tmp_path: Path) -> None:
    experts = qwen3.config.num_experts
    alike = torch.full((6, experts), 100.0)
    assert use_apart(statistics_with(alike, qwen3, tmp_path / "a")) == 0
    own = torch.zeros(experts // 2, experts)
    for row in range(experts // 2):
        own[row, 2 * row : 2 * row + 2] = 1e6
    found = use_apart(statistics_with(own, qwen3, tmp_path / "b"))
    assert found == pytest.approx(1, abs=1e-3)


def test_few_tokens_are_not_taken_for_many_kinds(qwen3: Checkpoint, tmp_path: Path) -> None:
    """Sequences of 64 choices drawn from one distribution differ by chance alone."""
    experts, generator = qwen3.config.num_experts, torch.Generator().manual_seed(0)
    drawn = torch.randint(experts, (40, 64), generator=generator)
    use = torch.nn.functional.one_hot(drawn, experts).sum(dim=1)
    assert is_one_kind(statistics_with(use, qwen3, tmp_path))


def test_plan_says_when_the_text_was_of_one_kind(qwen3: Checkpoint, tmp_path: Path) -> None:
    experts = qwen3.config.num_experts
    one = torch.full((6, experts), 100.0)
    two = one.clone()
    two[:3, : experts // 2] = 0
    request = PlanOptions(keep=0.6, method="adaptive", neuron_score="relative")
    for name, use, said in (("one", one, True), ("two", two, False)):
        statistics = statistics_with(use, qwen3, tmp_path / name)
        plan = make_plan(qwen3, this_machine(), request, statistics)
        assert (NOTE in plan.record.notes) is said


def test_calibration_counts_by_sequence(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The rows of all domains together are the tokens that each expert saw; padding is none."""
    for family in ("qwen3_moe", "deepseek_v3"):
        path = checkpoint_of(family)
        text = [domain("code", 3), domain("prose", 2, seed=1)]
        statistics = run(path, tmp_path / family, text)
        top_k = Checkpoint(path).config.num_experts_per_tok
        assert statistics.choices == top_k
        for layer in statistics.layers:
            use = statistics.sequence_use(layer)
            assert use is not None and use.shape[0] == 5
            lengths = torch.cat([d.lengths for d in text])
            assert use.sum(dim=1).tolist() == (top_k * lengths).tolist()
            total = sum(statistics.layer(d, layer)["tokens"] for d in statistics.domains)
            assert torch.equal(use.sum(dim=0), total)

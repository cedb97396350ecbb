"""Types near whose levels weights lie: suspected by rows, convicted by what they cost."""

from __future__ import annotations

import pytest
import torch
from support import tiny
from support.calibrating import domain
from support.calibrating import run as calibrated

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation import rounded_weights, undoing
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.rounded_groups import Groups
from tenp_edge.evaluation.rounded_weights import relative_errors
from tenp_edge.evaluation.rounding import sampled_errors
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.undoing import Suspects, Trials, expert_key, suspected_types
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.mixing import SampledRows
from tenp_edge.planning.measured.rounding_errors import GroupCost, RoundingErrors

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4")
JOB = RoundingJob(EXPORTER, ExportOptions("Q8_0", "per-expert", imatrix=True), TYPES)
SUSPECTS: Suspects = {
    expert_key(0, "up"): frozenset({"Q4_1"}),
    "1.q": frozenset({"Q4_1", "Q4_0"}),
    "1.k": frozenset(),
}
Work = tuple[Checkpoint, Statistics, RoundingErrors, ExportData]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    model = tmp_path_factory.mktemp("model")
    tiny.make(model, "qwen3_moe")
    statistics = calibrated(model, tmp_path_factory.mktemp("work"), [domain("code", 2, 32)])
    checkpoint, data = Checkpoint(model), ExportData(Importance(statistics))
    errors, suspects = sampled_errors(checkpoint, JOB, data)
    assert not any(suspects.values())  # of random weights
    return checkpoint, statistics, errors, data


def trials(work: Work, suspects: Suspects = SUSPECTS) -> Trials:
    checkpoint, _, errors, data = work
    return Trials(ModelSource(checkpoint), JOB, data, errors, suspects)


def test_types_whose_levels_are_near_are_suspected() -> None:
    """Weights of Q4_1 that were trained on a little; Q5_1 has half of those levels. Far from 0 a
    type with a minimum is as good as it looks, and on its levels it is exact."""
    torch.manual_seed(1)
    levels = JOB.mixer.rounded(SampledRows(torch.randn(16, 256), torch.rand(256)), "Q4_1")

    def suspected(matrix: torch.Tensor) -> set[str]:
        sample = SampledRows(matrix, torch.rand(256))
        errors = relative_errors(JOB.mixer, [sample], TYPES)
        return set(suspected_types(JOB.mixer, [sample], errors))

    assert suspected(levels + 2e-3 * torch.randn_like(levels)) == {"Q4_1", "Q5_1"}
    assert suspected(torch.randn(16, 256)) == suspected(5 + torch.randn(16, 256)) == set()
    assert "Q4_1" not in suspected(levels)


def test_a_suspected_type_is_tried_where_it_is_suspected(work: Work) -> None:
    """Gate and up have one type."""
    source = ModelSource(work[0])
    q4_0, q4_1 = trials(work).variants()
    assert (q4_0.layers, q4_0.ends, q4_1.layers) == ((1,), False, (0, 1))
    own, tried = source.expert(0, 1), q4_1.weights.expert(0, 1)
    assert own.gate is not None and tried.gate is not None
    assert not torch.equal(tried.gate, own.gate) and not torch.equal(tried.up, own.up)
    assert torch.equal(q4_0.weights.expert(0, 1).up, own.up)
    names = {role: source.config.layer_prefix(1) + f"self_attn.{role}_proj.weight" for role in "qk"}
    assert not torch.equal(q4_0.weights.read(names["q"]), source.read(names["q"]))
    assert torch.equal(q4_0.weights.read(names["k"]), source.read(names["k"]))


@pytest.mark.parametrize(
    ("of_layers", "layers"), [(0.1, (1,)), (1, (1,)), (2, (0, 2)), (9, (0, 1, 2))]
)
def test_of_a_large_model_some_layers_are_tried(
    work: Work, monkeypatch: pytest.MonkeyPatch, of_layers: float, layers: tuple[int, ...]
) -> None:
    """As many as hold so many weights, at least one."""
    config = work[0].config
    monkeypatch.setattr(rounded_weights, "SAMPLED_ABOVE", 1)
    most = int(of_layers * config.expert_weights / len(config.moe_layers))
    monkeypatch.setattr(undoing, "_MOST_WEIGHTS", most)
    suspects = {expert_key(layer, "up"): frozenset({"Q4_1"}) for layer in config.moe_layers}
    (variant,) = trials(work, suspects).variants()
    assert variant.layers == layers


def test_convicted_by_far_more_than_its_error_explains(work: Work) -> None:
    _, statistics, errors, _ = work
    tried, group = trials(work), GroupCost("Q4_0", 0.01, 0.01, (0, 1, 2))
    groups = dict.fromkeys(("gate_up", "down", "q"), group)
    assert tried.convicted([1e-6, 1e-6], groups, statistics, ()) == frozenset()
    convicted = tried.convicted([1e-6, 50.0], groups, statistics, ())
    assert convicted == {"Q4_1"}
    left = tried.without(convicted)
    assert "Q4_1" not in left.experts[0]["up"] and "Q4_1" not in left.others["1.q"]
    assert "Q4_0" in left.others["1.q"] and left.others["0.q"] == errors.others["0.q"]
    assert left.experts[1] == errors.experts[1] and "Q4_1" in left.experts[0]["down"]


def test_groups_are_measured_in_a_type_that_is_not_suspected(work: Work) -> None:
    checkpoint, _, errors, data = work
    cached = LayerCache(checkpoint.path)
    usual = Groups(cached, JOB, data, errors, {}).types
    suspects = {"2.q": frozenset({usual["q"]}), expert_key(0, "up"): frozenset({usual["down"]})}
    types = Groups(cached, JOB, data, errors, suspects).types
    assert types["q"] != usual["q"] and types["gate_up"] != usual["gate_up"]
    assert (types["k"], types["down"]) == (usual["k"], usual["down"])

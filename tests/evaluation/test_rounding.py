"""What types do to a model's weights: sampled against real encodings, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import SHAPES, write_holes
from support import tiny
from support.calibrating import domain
from support.calibrating import run as calibrated
from support.command import run as command

import tenp_edge
from tenp_edge.calibration.held_out import SLICE_FILE
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation import rounded_groups, rounded_weights, rounding
from tenp_edge.evaluation.mixed_plans import PARTS
from tenp_edge.evaluation.rounded_weights import relative_errors
from tenp_edge.evaluation.rounding import (
    measure_rounding,
    rounding_seconds,
    sampled_errors,
)
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.mixing import SampledRows
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.measured.probes import KEEPS
from tenp_edge.planning.measured.rounding_errors import FILE, RoundingErrors, load_errors
from tenp_edge.progress import QUIET
from tenp_edge.verbs import measure_types as typeverbs
from tenp_edge.verbs.calibrate import expected_measuring
from tenp_edge.verbs.options import CalibrationOptions

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
TYPES = ("Q8_0", "Q5_0", "Q4_K", "IQ4_NL", "Q4_0", "Q3_K", "Q2_K")
JOB = RoundingJob(EXPORTER, ExportOptions("Q8_0", "per-expert", imatrix=True), TYPES)
Work = tuple[Checkpoint, Statistics, Path]
OTHER = [domain("chat", 2, 64, 7), domain("languages", 1, 64, 8)]


def worked(model: Path, directory: Path) -> Work:
    """Calibrated, with a slice beside the statistics."""
    statistics = calibrated(model, directory, [domain("code", 4, 64)])
    save_domains(directory / SLICE_FILE, [domain("code", 1, 64, 5), domain("prose", 1, 64, 6)])
    return Checkpoint(model), statistics, directory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Rows that are whole blocks of 256."""
    model = tmp_path_factory.mktemp("model")
    tiny.make(model, "qwen3_moe", hidden_size=256, moe_intermediate_size=512)
    return worked(model, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Work:
    model = Path(tenp_edge.__file__).parent / "demo_model"
    return worked(model, tmp_path_factory.mktemp("bundled"))


def measured(work: Work, job: RoundingJob = JOB) -> RoundingErrors:
    checkpoint, statistics, directory = work
    return measure_rounding(checkpoint, job, statistics, directory, elsewhere=OTHER, **CPU)


def test_sampled_errors_are_those_of_all_rows(wide: Work) -> None:
    checkpoint, statistics, _ = wide
    imatrix = Importance(statistics)
    found, _ = sampled_errors(checkpoint, JOB, ExportData(imatrix))
    layer = checkpoint.config.moe_layers[-1]
    for part in ("gate", "up", "down"):
        every = []
        for expert in range(checkpoint.config.num_experts):
            squares = imatrix.expert(layer, expert, part)
            if squares.tokens:
                matrix = getattr(checkpoint.expert(layer, expert), part)
                every.append(SampledRows(matrix, squares.weights()))
        whole = relative_errors(JOB.mixer, every, TYPES)
        for kind in TYPES:
            assert found.of_expert(layer, part)[kind] == pytest.approx(whole[kind], rel=0.15)
    errors = found.of_other(layer, "q")
    assert errors is not None and list(errors) == list(TYPES)
    assert errors["Q8_0"] < errors["Q5_0"] < errors["Q4_K"] < errors["Q3_K"] < errors["Q2_K"]


def test_types_that_rows_cannot_hold_are_left_out() -> None:
    short = SampledRows(torch.randn(4, 96), None)
    assert list(relative_errors(JOB.mixer, [short], TYPES)) == ["Q8_0", "Q5_0", "IQ4_NL", "Q4_0"]
    longer = SampledRows(torch.randn(4, 320), torch.ones(320))  # a block and a bit
    assert list(relative_errors(JOB.mixer, [longer], TYPES)) == list(TYPES)


def test_groups_are_measured_once_and_kept(bundled: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(bundled)
    assert list(found.groups) == ["gate_up", "down", "embed", "q", "k", "v", "o"]
    assert all(cost.kl > 0 and cost.type == "Q3_K" for cost in found.groups.values())
    assert found.groups["embed"].layers == () and found.groups["q"].layers == tuple(range(6))
    assert found.groups["o"].error > 0 == found.groups["down"].error
    assert len(found.plans) == len(PARTS)
    for smaller, larger in pairwise(found.plans):
        assert smaller.loss > larger.loss > 0 and smaller.kl > larger.kl > 0
    assert len(found.cuts) == len(found.elsewhere) == len(KEEPS)
    assert [cut.predicted_loss for cut in found.cuts] == [cut.loss for cut in found.elsewhere]
    for less, more in pairwise(found.elsewhere):
        assert 0 < less.loss < more.loss and 0 < less.kl < more.kl
    for large, small in pairwise(found.cuts):
        assert large.keep_ratio > small.keep_ratio and 0 < large.mean_kl < small.mean_kl
    monkeypatch.setattr(rounding, "measure_variants", None)
    assert measured(bundled) == found == load_errors(bundled[2])


def as_large(work: Work, directory: Path, patch: pytest.MonkeyPatch, layers: int) -> RoundingErrors:
    """Measured on the same text as if it were a large model."""
    checkpoint, statistics, before = work
    (directory / SLICE_FILE).write_bytes((before / SLICE_FILE).read_bytes())
    patch.setattr(rounded_weights, "SAMPLED_ABOVE", 1)
    patch.setattr(rounded_groups, "MEASURED_LAYERS", layers)
    return measured((checkpoint, statistics, directory))


def test_of_a_large_model_the_experts_of_some_layers_are_mixed(
    bundled: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and KL are of those."""
    whole = measured(bundled)
    found = as_large(bundled, tmp_path, monkeypatch, 2)
    assert found.groups["down"].layers == (0, 5)
    for some, every in zip(found.plans, whole.plans, strict=True):
        assert 0 < some.loss < every.loss and some.kl > 0
    assert found.plans[0].kl < whole.plans[0].kl


def test_a_large_models_experts_cost_what_encoding_them_would_show(
    bundled: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 128 tokens, whose KL hangs on some that find another expert: about."""
    whole = measured(bundled)
    found = as_large(bundled, tmp_path, monkeypatch, 6)
    for group in ("gate_up", "down"):
        assert found.groups[group].kl == pytest.approx(whole.groups[group].kl, rel=0.5)


def test_measuring_is_a_small_part_of_calibrating(tmp_path: Path) -> None:
    """Of 48 layers of 600 million weights, after the default calibration: at most half of it."""
    checkpoint = Checkpoint(write_holes(tmp_path, SHAPES["qwen3-30b-a3b"]))
    job, speed = RoundingJob(EXPORTER, JOB.options), 10**10
    calibrated, active = 2 * 32 * 512, inspect_model(tmp_path).active_parameters
    seconds = rounding_seconds(checkpoint, job, [domain("code", 8, 512)], calibrated, speed)
    assert seconds < 0.5 * calibrated * 2 * active / speed


def test_other_conditions_are_measured_again(
    bundled: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(bundled)
    monkeypatch.setattr(rounding, "sampled_errors", _refused)
    rules = replace(JOB, options=replace(JOB.options, tensor_types=("attn_v=Q8_0",)))
    with pytest.raises(RuntimeError, match="measured again"):
        measured(bundled, rules)


def _refused(*_: object) -> None:
    raise RuntimeError("measured again")


def _damaged(stored: dict[str, Any]) -> None:
    stored["groups"] = {"q": 1}


def _foreign(stored: dict[str, Any]) -> None:
    stored["kind"] = "other"


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (_damaged, "is damaged", "delete it, calibrate --types again"),
        (_foreign, "was not written by tenp-edge", "calibrate --types again"),
    ],
)
def test_damaged_files_are_refused(
    bundled: Work,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
    hint: str,
) -> None:
    stored = measured(bundled).to_json()
    change(stored)
    (tmp_path / FILE).write_text(json.dumps(stored))
    with pytest.raises(UserError) as caught:
        load_errors(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / FILE} {message}")
    assert caught.value.hint == hint


def test_none_and_other_versions_are_nothing(bundled: Work, tmp_path: Path) -> None:
    assert load_errors(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({**measured(bundled).to_json(), "version": 0}))
    assert load_errors(tmp_path) is None


# -- the verbs -------------------------------------------------------------------------------------


def test_from_the_command_line(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    small = ("--samples", "2", "--seq-len", "64", "--json")
    done = command("calibrate", model, "--types", *small, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["types"]
    assert found == json.loads((tmp_path / FILE).read_text())
    assert list(found["groups"])[:2] == ["gate_up", "down"]
    whole = command("plan", model, "--ram", "8GiB", "--calibration", tmp_path, "--verbose")
    assert "buy the experts whole, all Q8_0 (8.5 bits a weight); expected" in one_line(whole.stdout)
    assert "What other RAM numbers buy" in whole.stdout and "<- chosen" in whole.stdout
    (tmp_path / FILE).unlink()
    done = command("plan", model, "--ram", "8GiB", "--calibration", tmp_path)
    said = "note the type was chosen by a rule; `tenp-edge calibrate MODEL --types"
    assert said in one_line(done.stdout)


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_compress_measures_whatever_it_takes(
    bundled: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by how fast a machine is: a plan must not depend on it. What is there costs nothing."""
    checkpoint, statistics, directory = bundled
    compute = CalibrationOptions(samples=1, seq_len=16, device="cpu")

    def asked(job: RoundingJob = JOB) -> bool:
        given = checkpoint, job, statistics, tmp_path, compute, QUIET
        return typeverbs.rounding_if_known(*given)

    assert not asked() and not (tmp_path / FILE).exists()  # no text
    (tmp_path / SLICE_FILE).write_bytes((directory / SLICE_FILE).read_bytes())
    assert asked()
    monkeypatch.setattr(rounding, "sampled_errors", _refused)
    assert asked() and typeverbs.rounding_of(checkpoint, tmp_path) is not None
    (tmp_path / "statistics.json").write_bytes((directory / "statistics.json").read_bytes())
    left = partial(expected_measuring, checkpoint, tmp_path, [], compute=compute, probed=False)
    assert left(JOB) == left(None) == 0
    rules = replace(JOB, options=replace(JOB.options, tensor_types=("attn_v=Q8_0",)))
    with pytest.raises(RuntimeError, match="measured again"):
        asked(rules)
    assert left(rules) > 0 and left(None, probed=True) > 0  # of a finished calibration too
    save_domains(tmp_path / SLICE_FILE, [domain("code", 1, 48, 9)])
    assert typeverbs.rounding_of(checkpoint, tmp_path) is None  # measured on other text


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_matrix_of_every_family_is_sampled(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    options = replace(JOB.options, imatrix=False)
    matrices = JOB.mixer.typed_matrices(checkpoint.config, options)
    source = ModelSource(checkpoint)
    found = dict(JOB.mixer.sampled_matrices(source, options, ExportData(), 4))
    assert list(found) == list(matrices)
    for matrix, sample in found.items():
        assert sample.rows.ndim == 2 and sample.rows.shape[1] == matrix.shape[-1]

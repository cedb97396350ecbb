"""A format of a third party, found by its entry point: planned, written, read back, validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from support.installed import install_exporter
from support.plans import cycled, plan_for

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.validation import ValidationReport, validate
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.forward.text_batch import Domain
from tenp_edge.progress import QuietProgress

CheckpointOf = Callable[[str], Path]
TEXT = Domain(
    "random",
    torch.randint(1, 370, (2, 48), generator=torch.Generator().manual_seed(5)),
    torch.tensor([48, 30]),
)


def test_a_third_partys_file_is_validated(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a plan, in the directory of a run: its loss is the pruning's, its runtime adds none;
    sequences are cut to what it holds."""
    install_exporter(tmp_path, monkeypatch, "plain", "support.plain_exporter:EXPORTER")
    model, output = checkpoint_of("qwen3_moe"), tmp_path / "out"
    checkpoint = Checkpoint(model)
    plan = plan_for(checkpoint, cycled(checkpoint, (48,)))
    output.mkdir()
    plan.save(output / "plan.json")
    writer, source = exporter("plain"), ModelSource(checkpoint, plan)
    manifest = writer.write(source, ExportOptions("F32"), output / writer.target)
    written = {file.name: file.stat().st_size for file in (output / "plain").iterdir()}
    assert written == manifest.files

    notes = _Notes()
    report = validate(model, output, [TEXT], device="cpu", threads=1, progress=notes)
    assert notes.said == [
        f"validating {output / 'plain'}",
        "the file holds 40 tokens: longer sequences are cut there",
    ]
    assert report.candidate == str(output / "plain")
    assert report.judged_through == "plain transformers"
    assert (report.tokenizer_agrees, report.graph_checks, report.measured_as) == (None, (), None)
    assert report.losses_note is None
    assert [loss.stage for loss in report.losses] == ["pruning", "quantisation", "runtime"]
    pruning, quantisation, runtime = report.losses
    assert pruning.overall.mean_kl > 1e-4 and quantisation.added_kl == 0.0
    assert abs(runtime.added_kl) < 1e-6
    assert ValidationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_third_partys_file_of_another_model_is_refused(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_exporter(tmp_path, monkeypatch, "plain", "support.plain_exporter:EXPORTER")
    other = Checkpoint(tiny.make(tmp_path / "other", "qwen3_moe", vocab_size=400))
    file = tmp_path / "plain"
    exporter("plain").write(ModelSource(other), ExportOptions("F32"), file)
    with pytest.raises(UserError) as caught:
        validate(checkpoint_of("qwen3_moe"), file, [TEXT], device="cpu")
    assert str(caught.value) == (
        f"{file} is another model: its vocab_size is 400, the reference has 384\n"
        "try: the reference that this model was pruned from"
    )


class _Notes(QuietProgress):
    """What is said beside the bars."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

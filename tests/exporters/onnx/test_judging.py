"""Validation of ONNX directories: the ways to run the graph, and the loss step by step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from support import tiny
from support.onnx_directories import export_onnx, ragged_source
from support.validating import domains_of

from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.cli.report.measured_tables import validation
from tenp_edge.errors import UserError
from tenp_edge.evaluation.validation import ValidationReport, validate
from tenp_edge.exporters.base import exporter
from tenp_edge.exporters.onnx.graph_checks import CHUNKED, DECODE, PADDED, PREFILL

CheckpointOf = Callable[[str], Path]


def strict(reference: Path, candidate: Path) -> ValidationReport:
    domains = domains_of(reference)
    return validate(reference, candidate, domains, device="cpu", dtype="float32", threads=1)


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_the_loss_is_the_pruning_and_nothing_else(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of(family)
    source = ragged_source(model)
    assert source.plan is not None
    source.plan.save(tmp_path / "plan.json")
    directory = export_onnx(source, tmp_path / "onnx")
    report = strict(model, directory)
    assert [check.way for check in report.graph_checks] == [PREFILL, DECODE, CHUNKED, PADDED]
    for check in report.graph_checks:
        assert check.note is None and check.relative_rms is not None
        assert check.relative_rms < 1e-5, check
    assert (report.judged_through, report.tokenizer_agrees) == ("onnxruntime (portable)", True)
    assert report.losses_note is None
    pruning, quantisation, export = report.losses
    assert [loss.stage for loss in report.losses] == ["pruning", "quantisation", "export"]
    assert pruning.overall.mean_kl > 1e-4
    assert quantisation.added_kl == 0.0, "float32 holds what was cut, bit for bit"
    assert abs(export.added_kl) < 1e-6
    assert ValidationReport.from_json(report.to_json()) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "onnx",
        "plan.json",
        "plan.safetensors",
    ]


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_weights_read_back_are_the_weights_written(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    source = ragged_source(checkpoint_of(family))
    directory = export_onnx(source, tmp_path / "onnx")
    stored = exporter("onnx").read_back(directory, source.checkpoint.config)
    assert source.plan is not None and stored.plan_digest == source.plan.digest
    assert stored.tensors.keys() == source.tensors.keys()
    for name in source.tensors:
        assert torch.equal(stored.read(name), source.read(name).float()), name
    head = "model.embed_tokens.weight"
    assert torch.equal(stored.held(head)(3, 9), source.read(head)[3:9].float())
    assert torch.equal(stored.read_rows(head, 3, 9), source.read(head)[3:9].float())


def test_an_output_directory_and_a_graph_name_the_same_model(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = checkpoint_of("olmoe")
    source = ragged_source(model)
    directory = export_onnx(source, tmp_path / "onnx")
    found = {strict(model, path).candidate for path in (tmp_path, directory / "model.onnx")}
    assert found == {str(directory)}
    write_checkpoint(source, tmp_path / "checkpoint")
    split = strict(model, directory).losses
    assert [loss.stage for loss in split] == ["pruning", "quantisation", "export"]


def test_weights_stored_in_an_unknown_way(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """What cannot be decoded is not split; the graph is then compared with its own prefill."""
    model = checkpoint_of("olmoe")
    directory = export_onnx(ragged_source(model), tmp_path / "onnx")
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    for tensor in graph.graph.initializer:
        tensor.name = tensor.name.replace(f"{name}.T", f"{name}.X")
    for node in graph.graph.node:
        node.input[:] = [given.replace(f"{name}.T", f"{name}.X") for given in node.input]
    onnx.save(graph, directory / "model.onnx")
    report = strict(model, directory)
    assert report.losses_note == (
        f"the file's weights cannot be read back: {directory} stores {name} in a way that is not "
        "read back here"
    )
    assert [loss.stage for loss in report.losses] == ["export"]
    assert {check.note for check in report.graph_checks} == {"against its own prefill"}
    assert validation(report.to_json())


def test_another_model(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    directory = export_onnx(ragged_source(checkpoint_of("olmoe")), tmp_path / "onnx")
    with pytest.raises(UserError) as caught:
        strict(checkpoint_of("mixtral"), directory)
    assert caught.value.message == (
        f"{directory} is another model: olmoe, the reference is mixtral"
    )
    other = tiny.make(tmp_path / "other", "olmoe", num_hidden_layers=2)
    with pytest.raises(UserError) as caught:
        strict(other, directory)
    assert caught.value.message == (
        f"{directory} is another model: its num_hidden_layers is 3, the reference has 2"
    )
    shutil.rmtree(directory)
    with pytest.raises(UserError) as caught:
        strict(other, directory)
    assert caught.value.message == f"{directory} does not exist"

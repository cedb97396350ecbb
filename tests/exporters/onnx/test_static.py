"""Mode static: fixed shapes, operators that NPU compilers take, the numbers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import tiny
from support.plans import ragged_plan
from support.references import reference_model
from support.static_graphs import BATCH, LENGTH, PAST, in_chunks, left_padded

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions, FixedLengths
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.exporters.onnx.targets import TARGETS, on_cpu, require_static
from tenp_edge.forward.transformers_model import load_pruned
from tenp_edge.progress import QUIET

OPTIONS = ExportOptions(
    "none", "static", lengths=FixedLengths(BATCH, LENGTH, PAST), targets=tuple(TARGETS)
)
Make = Callable[[str], Path]


def _relative_rms(found: np.ndarray, model: torch.nn.Module) -> float:
    ids, mask, positions = left_padded()
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool().numpy()
    difference = (found - wanted.numpy())[real]
    return float(np.sqrt((difference**2).mean() / (wanted.numpy()[real] ** 2).mean()))


@pytest.mark.parametrize("family", tiny.STATIC_FAMILIES)
def test_whole_and_ragged_models_equal_transformers(
    checkpoint_of: Make, tmp_path: Path, family: str
) -> None:
    base = Checkpoint(checkpoint_of(family))
    pruned = ModelSource(base, ragged_plan(base))
    write_checkpoint(pruned, tmp_path / "pruned", QUIET)
    eager = {"attn_implementation": "eager", "dtype": torch.float32}
    models = {
        "whole": reference_model(base.path, experts_implementation="eager", **eager),
        "ragged": load_pruned(tmp_path / "pruned", torch.float32),
    }
    for (name, model), source in zip(models.items(), (ModelSource(base), pruned), strict=True):
        out = tmp_path / name
        manifest = EXPORTER.write(source, OPTIONS, out)
        assert {file.name: file.stat().st_size for file in out.iterdir()} == manifest.files
        assert _relative_rms(in_chunks(out), model.eval()) < 1e-5
        for graph in ("prefill.onnx", "decode.onnx"):
            onnx.checker.check_model(str(out / graph), full_check=True)


def test_both_graphs_share_the_weights_and_the_router_is_for_the_cpu(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("deepseek_v3")))
    EXPORTER.write(source, OPTIONS, tmp_path / "out")
    graphs = [
        onnx.load(tmp_path / "out" / name, load_external_data=False).graph
        for name in ("prefill.onnx", "decode.onnx")
    ]
    stored = [
        {
            tensor.name: [entry.value for entry in tensor.external_data]
            for tensor in graph.initializer
            if tensor.external_data
        }
        for graph in graphs
    ]
    assert stored[0] == stored[1]
    entry = {"embed_tokens", "mask", "rotary"}
    left = {node.name for graph in graphs for node in graph.node if on_cpu(node.name)}
    inner = {name for name in left if entry.isdisjoint(name.split("/"))}
    assert {name.split("/")[-1] for name in inner} >= {"TopK", "ScatterElements"}
    assert all("/moe/router/" in name or "/moe/scatter/" in name for name in inner)


def test_the_usability_report_is_kept(checkpoint_of: Make, tmp_path: Path) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("qwen3_moe")))
    EXPORTER.write(source, OPTIONS, tmp_path / "out")
    report = (tmp_path / "out" / "mobile-usability.txt").read_text()
    assert "prefill.onnx, NNAPI:" in report
    assert "decode.onnx, CoreML:" in report
    assert "Unsupported ops: ai.onnx:" in report


def test_a_graph_with_free_shapes_is_refused(checkpoint_of: Make, tmp_path: Path) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("qwen3_moe")))
    EXPORTER.write(source, ExportOptions("none", "portable"), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    with pytest.raises(UserError, match=r"model\.onnx would have \d+ nodes without a fixed shape"):
        require_static("model.onnx", model, [])


def test_an_operator_that_a_target_does_not_take_is_refused() -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Erf", ["x"], ["y"], name="/model/layers.0/mlp/Erf")
    shapes = [value(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    require_static("decode.onnx", model, [TARGETS["coreml"]])
    with pytest.raises(UserError) as caught:
        require_static("decode.onnx", model, [TARGETS["nnapi"]])
    assert caught.value.message == (
        "NNAPI (Android) does not take 1 of the 1 nodes of decode.onnx, first Erf at "
        f"/model/layers.0/mlp/Erf: not in {TARGETS['nnapi'].source}"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ExportOptions("none", "static", lengths=FixedLengths(1, 128, 600)),
            "--length 128 and --past 600 are for a context of 601 tokens; the model has 512",
        ),
        (
            ExportOptions("none", "static", lengths=FixedLengths(0, 8, 8)),
            "--batch 0 leaves a graph without tokens",
        ),
        (ExportOptions("none", "static", targets=("tpu",)), "no NPU target 'tpu'"),
        (
            ExportOptions("none", "portable", lengths=FixedLengths(1, 8, 8)),
            "--mode portable has no fixed shapes for --batch, --length and --past",
        ),
    ],
)
def test_lengths_that_cannot_be(checkpoint_of: Make, options: ExportOptions, message: str) -> None:
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    with pytest.raises(UserError) as caught:
        EXPORTER.check(config, options)
    assert caught.value.message == message


def test_windows_have_no_fixed_places(checkpoint_of: Make) -> None:
    with pytest.raises(UserError) as caught:
        EXPORTER.check(Checkpoint(checkpoint_of("gpt_oss")).config, OPTIONS)
    assert str(caught.value) == (
        "--mode static cannot hold gpt_oss: which places of a fixed cache a window covers changes "
        "from token to token\ntry: --mode portable without --target, --batch, --length and --past"
    )


def test_states_have_no_fixed_step(checkpoint_of: Make) -> None:
    with pytest.raises(UserError) as caught:
        EXPORTER.check(Checkpoint(checkpoint_of("lfm2_moe")).config, OPTIONS)
    assert str(caught.value) == (
        "--mode static cannot hold lfm2_moe: a state goes on from the last token of a step, which "
        "a step of fixed length does not end with\n"
        "try: --mode portable without --target, --batch, --length and --past"
    )

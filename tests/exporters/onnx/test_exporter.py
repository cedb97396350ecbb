"""An ONNX directory is the manifest that announced it, and computes what the model computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support import tiny
from support.command import run
from support.limits import largest_file
from support.onnx_cases import (
    Running,
    assert_equal_runs,
    different_widths,
    export,
    relative_rms,
    torch_logits,
    written,
)
from support.plans import ragged_plan, whole_plan
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER as GGUF
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.exporters.onnx.graph.rope import frequencies
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.units import format_size
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.options import CalibrationOptions, CompressOptions

Make = Callable[[str], Path]


def graphs(graph: Any) -> Iterator[Any]:
    """``graph`` and the branches of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_directory_is_the_manifest(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, different_widths(checkpoint))
    for name, shard_bytes in (("one", None), ("sharded", 100_000)):
        options = ExportOptions("none", shard_bytes=shard_bytes)
        manifest = EXPORTER.manifest(checkpoint, source.config, options)
        assert EXPORTER.write(source, options, tmp_path / name) == manifest
        assert written(tmp_path / name) == dict(manifest.files)
        model = onnx.load_model(tmp_path / name / "model.onnx")
        stored = {t.name: t for t in model.graph.initializer}
        for tensor in manifest.tensors:
            proto = stored[tensor.name]
            assert tuple(proto.dims) == tensor.shape and len(proto.raw_data) == tensor.nbytes
            assert onnx.TensorProto.DataType.Name(proto.data_type) == tensor.type
    shards = sorted((tmp_path / "sharded").glob("*.data"))
    assert len(shards) > 5 and shards[0].name == f"model-00001-of-{len(shards):05}.data"
    single = [shard for shard in shards if shard.stat().st_size > 100_000]
    largest = max(tensor.nbytes for tensor in manifest.tensors)
    assert all(shard.stat().st_size <= largest for shard in single)
    assert not list(tmp_path.glob("*.partial"))


def test_files_and_tenp_json(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = ragged_plan(checkpoint)
    source = ModelSource(checkpoint, plan)
    manifest = export(source, tmp_path / "out")
    assert sorted(manifest.files) == [
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "model.data",
        "model.onnx",
        "tenp.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    widths = {str(layer): list(row) for layer, row in source.config.expert_widths.items()}
    found = json.loads((tmp_path / "out" / "tenp.json").read_text())
    assert found["mode"] == "portable" and found["quant"] == "none"
    assert found["plan"] == plan.digest and found["expert_widths"] == widths
    assert found["files"]["model.data"] == manifest.files["model.data"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32" and config["tenp"]["expert_widths"] == widths
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["type"] == "decoder" and genai["model"]["decoder"]["head_size"] == 32
    assert {t.part for t in manifest.tensors} == {"routed experts", "other"}
    routed = [t for t in manifest.tensors if t.part == "routed experts"]
    assert sum(t.nbytes for t in routed) == 4 * 3 * 64 * source.config.expert_neurons


def test_pruned_checkpoint_and_plan_give_the_same_weights(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("deepseek_v3"))
    source = ModelSource(checkpoint, different_widths(checkpoint))
    write_checkpoint(source, tmp_path / "pruned")
    export(source, tmp_path / "a")
    export(ModelSource(Checkpoint(tmp_path / "pruned")), tmp_path / "b")
    for name in ("model.onnx", "model.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    digests = [json.loads((tmp_path / d / "tenp.json").read_text())["plan"] for d in "ab"]
    assert digests[0] == digests[1] == source.plan.digest  # type: ignore[union-attr]


def test_whole_plan_changes_nothing(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    export(ModelSource(checkpoint), tmp_path / "a")
    export(ModelSource(checkpoint, whole_plan(checkpoint)), tmp_path / "b")
    for name in ("model.onnx", "model.data", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# -- the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_graph_is_plain_onnx(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    export(ModelSource(checkpoint, different_widths(checkpoint)), tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load_model(file, load_external_data=False)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23)}
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    assert {node.domain for node in nodes} == {""}
    assert len({node.name for node in nodes}) == len(nodes)
    moe_layer = checkpoint.config.moe_layers[0]
    assert f"/model/layers.{moe_layer}/moe/experts.3/down_proj/MatMul" in {n.name for n in nodes}
    config = checkpoint.config
    kv = [f"{layer}.{name}" for layer in config.attention_by_layer for name in ("key", "value")]
    states = [f"{n}.{name}" for n, own in enumerate(config.mixers) for name in own.state_shapes]
    assert [i.name for i in model.graph.input] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{name}" for name in kv),
        *(f"past_state.{name}" for name in states),
    ]
    outputs = [f"present.{name}" for name in kv] + [f"present_state.{name}" for name in states]
    assert [o.name for o in model.graph.output] == ["logits", *outputs]
    dims = [
        dim.dim_param or dim.dim_value for dim in model.graph.input[3].type.tensor_type.shape.dim
    ]
    assert dims[0] == "batch_size" and dims[2] == "past_sequence_length"


def test_tied_embedding_is_stored_once(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    manifest = EXPORTER.manifest(checkpoint, checkpoint.config, ExportOptions("none"))
    vocabulary = [tensor.name for tensor in manifest.tensors if tiny.VOCAB in tensor.shape]
    assert vocabulary == ["model.embed_tokens.weight"]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_equals_torch_when_every_width_differs(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = different_widths(checkpoint)
    export(ModelSource(checkpoint, plan), tmp_path / "out")
    assert_equal_runs(tmp_path / "out", torch_logits(checkpoint.path, plan))


@pytest.mark.parametrize("family", tiny.MLA_FAMILIES)
def test_latent_cache_equals_torch(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    manifest = export(ModelSource(checkpoint), tmp_path / "out", latent_cache=True)
    assert_equal_runs(tmp_path / "out", torch_logits(checkpoint.path))
    cache = Running(tmp_path / "out", [0])
    cache.step(5)
    assert [value.shape for value in cache.cache.values()][:2] == [(1, 1, 5, 32), (1, 1, 5, 16)]
    assert "genai_config.json" not in manifest.files
    options = ExportOptions("none", latent_cache=True)
    run = EXPORTER.run_memory(checkpoint, checkpoint.config, options, MemoryRun(context=100))
    assert run is not None and run.kv_bytes == 100 * 2 * 4 * 3 * (32 + 16)


_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "groups of v2": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "values smaller than keys": ("deepseek_v3", {"v_head_dim": 12}),
    "values larger than keys": ("deepseek_v2", {"v_head_dim": 48}),
    "attention biases": ("olmoe", {"attention_bias": True}),
    "attention biases of MLA": ("deepseek_v3", {"attention_bias": True}),
    "no renormalising": ("deepseek_v3", {"norm_topk_prob": False}),
    "norms of heads": ("glm4_moe", {"use_qk_norm": True, "partial_rotary_factor": 0.25}),
    "no shared expert": ("qwen2_moe", {"decoder_sparse_step": 2, "tie_word_embeddings": True}),
    "linear": ("mixtral", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "yarn": ("qwen3_moe", {"rope_parameters": _YARN, "rope_theta": None}),
    "yarn of v3": ("deepseek_v3", {"rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_torch(name: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    path = tiny.make(tmp_path / "model", family, **changes)
    export(ModelSource(Checkpoint(path)), tmp_path / "out")
    assert_equal_runs(tmp_path / "out", torch_logits(path))


def test_float32_whatever_the_source_is(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "model", "qwen2_moe", torch_dtype="bfloat16", fused=True)
    manifest = export(ModelSource(Checkpoint(path)), tmp_path / "out")
    assert {tensor.type for tensor in manifest.tensors} == {"FLOAT"}
    wanted = torch_logits(path)
    assert relative_rms(Running(tmp_path / "out", [0]).steps(24), wanted[:1]) < 1e-5


@pytest.mark.parametrize("extra", [{}, {"truncate": False}, {"beta_fast": 16, "beta_slow": 2}])
def test_yarn_frequencies_are_transformers(extra: dict[str, Any], tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "m", "qwen3_moe", rope_parameters=_YARN | extra, rope_theta=None)
    found, scaling = frequencies(Checkpoint(path).config)
    wanted, attention = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.from_pretrained(path), "cpu")
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
    assert scaling == pytest.approx(attention)


def test_yarn_without_its_length_is_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0}
    config = Checkpoint(tiny.make(tmp_path / "model", "qwen3_moe", rope_scaling=scaling)).config
    with pytest.raises(UserError) as caught:
        EXPORTER.check(config, ExportOptions("none"))
    assert str(caught.value) == (
        "config.json: rope scaling yarn lacks original_max_position_embeddings\n"
        "try: the config.json that belongs to the checkpoint"
    )


# -- writing ---------------------------------------------------------------------------------------


def test_killed_write_leaves_nothing(
    checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("olmoe")))
    read = source.read

    def fail(name: str) -> torch.Tensor:
        if "layers.2" in name:
            raise KeyboardInterrupt
        return read(name)

    monkeypatch.setattr(source, "read", fail)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits")
def test_full_disk_leaves_nothing(checkpoint_of: Make, tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    with largest_file(500 * 1024):
        found = run("export", model, "--format", "onnx", "-o", tmp_path / "out")
    checkpoint = Checkpoint(model)
    manifest = EXPORTER.manifest(checkpoint, checkpoint.config, ExportOptions("none"))
    size = format_size(manifest.files["model.data"])
    assert found.returncode == 2 and not list(tmp_path.iterdir())
    assert found.stderr.splitlines()[-2:] == [
        f"error: model.data needs {size}, the limit for one file is 500.00 KiB (ulimit -f)",
        "try:   raise the limit; the same command continues",
    ]


def test_export_replaces_its_own_and_nothing_else(checkpoint_of: Make, tmp_path: Path) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("mixtral")))
    out = tmp_path / "out"
    export(source, out, shard_bytes=500_000)
    (out / "mine.txt").write_text("kept")
    manifest = export(source, out)
    assert written(out) == dict(manifest.files) | {"mine.txt": 4}
    onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("kept")
    refuse(
        lambda: export(source, tmp_path / "other"),
        f"{tmp_path / 'other'} is not empty and was not written by tenp-edge",
        "an empty or new directory for -o",
    )
    assert written(tmp_path / "other") == {"thesis.txt": 4}


def test_compress_into_onnx(checkpoint_of: Make, tmp_path: Path) -> None:
    options = CompressOptions(
        calibration=CalibrationOptions(samples=2, seq_len=32),
        plan=PlanOptions(keep=0.5, format="onnx"),
        skip_checkpoint=True,
        no_validate=True,
    )
    result = run_compress(checkpoint_of("qwen3_moe"), tmp_path / "out", options)
    sizes = {f"onnx/{name}": size for name, size in written(tmp_path / "out" / "onnx").items()}
    assert dict(result.plan.files) == sizes
    assert result.plan.memory["kv_type"] == "F32"
    assert Running(tmp_path / "out" / "onnx", [0]).step(24).shape == (1, 24, tiny.VOCAB)


# -- refused ---------------------------------------------------------------------------------------


def refuse(action: Callable[[], object], message: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert (error.value.message, error.value.hint) == (message, hint)


REFUSED: dict[str, tuple[ExportOptions, str, str]] = {
    "mode": (
        ExportOptions("none", "fast"),
        "ONNX has no mode 'fast'",
        "--mode portable|static|ort-cpu",
    ),
    "quant": (
        ExportOptions("Q8_0"),
        "ONNX mode portable has no quantisation 'Q8_0'",
        "--quant none|int8|int4",
    ),
    "rules": (
        ExportOptions("none", tensor_types=("a=b",)),
        "--tensor-type is for GGUF: ONNX has one type per --quant",
        "leave it out",
    ),
    "imatrix": (
        ExportOptions("none", imatrix_file="x"),
        "--imatrix-out is for GGUF",
        "leave it out",
    ),
    "latent": (
        ExportOptions("none", latent_cache=True),
        "qwen3_moe has no latent attention: its cache is keys and values",
        "leave --latent-cache out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_are_refused(name: str, checkpoint_of: Make) -> None:
    options, message, hint = REFUSED[name]
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    refuse(lambda: EXPORTER.check(config, options), message, hint)


def test_rope_without_its_keys_is_refused(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "m", "mixtral", rope_scaling={"type": "linear", "factor": 2.0})
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"rope_scaling": {"type": "linear"}}))
    refuse(
        lambda: EXPORTER.check(Checkpoint(path).config, ExportOptions("none")),
        "config.json contradicts itself: rope_scaling of the type linear has no factor",
        "the config.json that belongs to the checkpoint",
    )


def test_gguf_refuses_what_is_for_onnx(checkpoint_of: Make) -> None:
    config = Checkpoint(checkpoint_of("deepseek_v2")).config
    refuse(
        lambda: GGUF.check(config, ExportOptions("F32", latent_cache=True)),
        "--latent-cache is for ONNX; a GGUF has no use for it",
        "leave it out",
    )

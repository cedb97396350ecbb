"""ONNX directories as sessions: torch's logits, fixed shapes, and what is wrong with a bad one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from random_tokenizer import write_full_tokenizer
from support import tiny
from support.onnx_directories import export_onnx, ragged_source, torch_logits

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.runtime.bench import bench
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import measure_peak_rss
from tenp_edge.runtime.onnx.model import OnnxModel
from tenp_edge.runtime.opening import RunOptions, model_bytes, model_name, open_model

CheckpointOf = Callable[[str], Path]
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 384, 40)]
OPTIONS = RunOptions(threads=1)


@pytest.fixture(scope="module")
def source_of(checkpoint_of: CheckpointOf) -> Callable[[str], ModelSource]:
    return lambda family: ragged_source(checkpoint_of(family))


@pytest.fixture(scope="module")
def exported(
    source_of: Callable[[str], ModelSource], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An OLMoE directory; do not change it."""
    return export_onnx(source_of("olmoe"), tmp_path_factory.mktemp("onnx") / "onnx")


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - wanted).sum() / np.square(wanted).sum()))


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_a_session_says_what_torch_says(
    family: str, source_of: Callable[[str], ModelSource], tmp_path: Path
) -> None:
    source = source_of(family)
    wanted = torch_logits(source, TOKENS).numpy()
    directory = export_onnx(source, tmp_path / "onnx")
    with open_model(directory, RunOptions(threads=1, ubatch=16)) as model:
        assert (model.runtime, model.kv_type, model.vocab_size) == ("onnxruntime", "F32", 384)
        assert model.context == 512, "the tiny models end before the default"
        assert error(model.logits(TOKENS), wanted) < 1e-5
        assert error(model.logits(TOKENS, 30), wanted[30:]) < 1e-5
        assert error(model.prompt(TOKENS[:20]), wanted[19]) < 1e-5
        for place in range(20, 24):
            assert error(model.decode(TOKENS[place]), wanted[place]) < 1e-5
        model.reset(7)
        assert error(model.evaluate(TOKENS[7:12]), wanted[11]) < 1e-5
        assert error(model.prompt(TOKENS), wanted[-1]) < 1e-5
        assert model.position == len(TOKENS)


def test_padding_on_the_left(source_of: Callable[[str], ModelSource], exported: Path) -> None:
    sequences = [TOKENS[:9], TOKENS[9:40], TOKENS[:2]]
    with OnnxModel(exported, threads=1) as model:
        for found, tokens in zip(model.padded_logits(sequences), sequences, strict=True):
            assert error(found, torch_logits(source_of("olmoe"), tokens).numpy()) < 1e-5


def fixed(directory: Path, length: int, past: int, batch: int = 1) -> None:
    """model.onnx -> prefill.onnx and decode.onnx: the same graph, every dimension a number."""
    graph = directory / "model.onnx"
    for name, size in (("prefill", length), ("decode", 1)):
        model = onnx.load(graph, load_external_data=False)
        for dimension, value in (
            ("batch_size", batch),
            ("sequence_length", size),
            ("past_sequence_length", past),
            ("total_sequence_length", past + size),
        ):
            make_dim_param_fixed(model.graph, dimension, value)
        onnx.save(model, directory / f"{name}.onnx")
    graph.unlink()


@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_of_fixed_shapes(batch: int, copied: Path, exported: Path) -> None:
    """Chunks of 16 into 31 places: padded, across the cache, and up to its very last token."""
    fixed(copied, length=16, past=31, batch=batch)
    with open_model(copied, OPTIONS) as model, open_model(exported, OPTIONS) as dynamic:
        assert (model.context, model.batch_tokens) == (32, 16)
        wanted = dynamic.logits(TOKENS[:32])
        assert error(model.logits(TOKENS[:32]), wanted) < 1e-5
        assert error(model.prompt(TOKENS[:19]), wanted[18]) < 1e-5
        for place in range(19, 32):
            assert error(model.decode(TOKENS[place]), wanted[place]) < 1e-5
        model.reset(3)
        assert error(model.evaluate(TOKENS[3:30]), wanted[29]) < 1e-5
        with pytest.raises(UserError) as caught:
            model.evaluate(TOKENS[:3])
        assert caught.value.message == "33 tokens do not fit into a context of 32"
    with pytest.raises(UserError) as caught:
        open_model(copied, RunOptions(context=33))
    assert str(caught.value) == (
        f"a context of 33 does not fit {copied}, whose graphs are fixed: 31 tokens in the cache "
        "and the next one\ntry: --context 32, or an export with --past 32"
    )


def test_graphs_that_do_not_belong_together(copied: Path) -> None:
    other = Path(shutil.copytree(copied, copied.parent / "other"))
    fixed(copied, length=16, past=31)
    fixed(other, length=16, past=15)
    shutil.copy(other / "decode.onnx", copied)
    assert refused(copied) == (
        f"{copied / 'prefill.onnx'} has batch 1 and past 31, decode.onnx has batch 1, past 15 and "
        "length 1\ntry: export them together"
    )


def test_prepacking_changes_no_number(exported: Path) -> None:
    with (
        open_model(exported, OPTIONS) as model,
        OnnxModel(exported, threads=1, prepack=False) as mapped,
    ):
        assert error(mapped.logits(TOKENS), model.logits(TOKENS)) < 1e-6


def test_bench_and_peak_memory(exported: Path) -> None:
    found = bench(exported, OPTIONS, prompt_tokens=16, generated_tokens=4, repeats=1)
    assert (found.runtime, found.kv_type) == ("onnxruntime", "F32")
    assert (
        found.file_bytes
        == model_bytes(exported)
        == sum(file.stat().st_size for file in exported.iterdir())
    )
    assert model_name(exported) == model_name(exported / "model.onnx") == "onnx"
    with pytest.raises(UserError) as caught:
        bench(exported, OPTIONS, prompt_tokens=512, generated_tokens=4, repeats=1)
    assert caught.value.message == "512 + 4 tokens do not fit into a context of 512"
    peak = measure_peak_rss(exported, context=64, ubatch=16, kv_type="F32", threads=1)
    assert 20 * 2**20 < peak < 400 * 2**20


def test_a_large_vocabulary_stays_within_its_prediction(tmp_path: Path) -> None:
    size = 64_000
    model = tiny.make(tmp_path / "model", "qwen3_moe", vocab_size=size)
    write_full_tokenizer(model, size)
    checkpoint, run = Checkpoint(model), MemoryRun(context=64, ubatch=16, kv_type="F32")
    written = export_onnx(ModelSource(checkpoint), tmp_path / "onnx", quant="int8")
    options = ExportOptions("int8", "portable")
    predicted = EXPORTER.run_memory(checkpoint, checkpoint.config, options, run)
    assert predicted is not None
    peak = measure_peak_rss(written, context=64, ubatch=16, kv_type="F32", threads=1)
    assert peak <= predicted.total_bytes


# -- what is refused -------------------------------------------------------------------------------


def refused(directory: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_model(directory, RunOptions(threads=1, **options))  # type: ignore[arg-type]
    return str(caught.value)


COPY = "\ntry: copy the whole directory again, or export it again"


def test_data_that_is_missing_cut_off_or_elsewhere(copied: Path) -> None:
    data, graph = copied / "model.data", copied / "model.onnx"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert refused(copied) == (
        f"{data} is cut off: it has {len(whole) // 2} bytes, model.onnx needs {len(whole)}" + COPY
    )
    data.unlink()
    assert refused(copied) == f"{data} does not exist; model.onnx keeps its weights there" + COPY
    (copied.parent / "elsewhere").write_bytes(whole)
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere"
    onnx.save(model, graph)
    assert refused(copied) == (
        f"{graph} keeps its weights in ../elsewhere, outside its directory\n"
        "try: export it again: a graph that reaches elsewhere is not run"
    )


def test_graphs_that_are_not_a_decoder(copied: Path) -> None:
    graph = copied / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    del model.graph.output[0]
    onnx.save(model, graph)
    assert refused(copied) == (
        f"{graph} is not a decoder with a cache: it lacks logits\n"
        f"try: tenp-edge export CHECKPOINT --format onnx -o {copied} --force"
    )
    graph.write_bytes(b"GGUF" * 100)
    assert refused(copied) == f"{graph} is not an ONNX model" + COPY


def test_directories_without_a_model(copied: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == (
        f"{tmp_path / 'no'} does not exist\ntry: the path of a GGUF file or an ONNX directory"
    )
    assert refused(tmp_path) == (
        f"{tmp_path} holds no ONNX model: neither model.onnx nor prefill.onnx and decode.onnx\n"
        "try: tenp-edge export CHECKPOINT --format onnx -o DIR"
    )
    (copied / "config.json").write_text(json.dumps({"vocab_size": 384}))
    assert refused(copied) == (
        f"{copied / 'config.json'}: max_position_embeddings is None, not a number above zero" + COPY
    )
    (copied / "config.json").unlink()
    assert refused(copied) == f"{copied} has no config.json" + COPY


def test_choices_that_an_onnx_directory_does_not_have(exported: Path) -> None:
    assert refused(exported, context=513) == (
        "a context of 513 is beyond the model's 512 positions\ntry: --context 512"
    )
    assert refused(exported, kv_type="F16") == (
        "onnx keeps its KV cache in F32, not in F16\ntry: run without --kv-type"
    )
    assert refused(exported, gpu_layers=1) == (
        "onnx is an ONNX directory, which runs on the CPU here\ntry: run without --gpu-layers"
    )
    assert refused(exported, parallel=2) == (
        "onnx is an ONNX directory, which runs one sequence at a time\ntry: run without --parallel"
    )
    assert refused(exported, ubatch=0) == "--ubatch is 0\ntry: --ubatch of 1 or more"

"""Mode ort-cpu: the operators of onnxruntime's CPU, exact in float, honest elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support import tiny
from support.onnx_cases import (
    IDS,
    MASK,
    Floats,
    Running,
    assert_equal_runs,
    different_widths,
    export,
    relative_rms,
    torch_logits,
    written,
)
from support.onnx_quant_cases import ROUNDED, assert_close, float_activations, written_logits
from support.plans import cycled, plan_for

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.forward.transformers_model import model_of
from tenp_edge.planning.budget.allocation import limit_widths, limited
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.options import CalibrationOptions, CompressOptions

Make = Callable[[str], Path]


def tiered_plan(checkpoint: Checkpoint) -> CompressionPlan:
    """Three widths that QMoE takes, one expert after the other."""
    full = checkpoint.config.moe_intermediate_size
    return plan_for(checkpoint, cycled(checkpoint, (32, 64, full)))


def assert_equal_cpu_runs(directory: Path, wanted: Floats, bar: float = 1e-5) -> None:
    """Prefill, cached decode and chunks of one prompt; four prompts without padding together."""
    for tokens in ((24,), (20, 1, 1, 1, 1), (7, 5, 12)):
        assert relative_rms(Running(directory, [0]).steps(*tokens), wanted[:1]) < bar
    alone = [whole_prompts(directory, [row]).steps(23, 1) for row in range(4)]
    together = whole_prompts(directory, [0, 1, 2, 3]).steps(23, 1)
    assert relative_rms(together, np.concatenate(alone)) < bar


def whole_prompts(directory: Path, rows: list[int]) -> Running:
    """Rows of IDS as prompts of 24 tokens each: the padding counts as a token."""
    running = Running(directory, rows)
    running.mask = np.ones_like(running.mask)
    running.positions = np.arange(24)[None].repeat(len(rows), axis=0)
    return running


@pytest.mark.parametrize("family", tiny.CPU_FAMILIES)
def test_float_equals_torch(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = different_widths(checkpoint)
    manifest = export(ModelSource(checkpoint, plan), tmp_path / "out", mode="ort-cpu")
    assert written(tmp_path / "out") == dict(manifest.files)
    wanted = torch_logits(checkpoint.path, plan)
    assert_equal_cpu_runs(tmp_path / "out", wanted)
    if family in tiny.MLA_FAMILIES:
        assert_equal_runs(tmp_path / "out", wanted)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_int4_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, tiered_plan(checkpoint))
    out = tmp_path / "out"
    assert written_after(source, out, "int4")
    wanted = written_logits(source, out)
    assert_close(out, wanted, ROUNDED)
    float_activations(out)
    assert_equal_cpu_runs(out, wanted)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2"])
def test_int8_computes_with_the_written_weights(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, tiered_plan(checkpoint))
    assert written_after(source, tmp_path / "out", "int8")
    assert_close(tmp_path / "out", written_logits(source, tmp_path / "out"), ROUNDED)


def written_after(source: ModelSource, out: Path, quant: str) -> bool:
    manifest = export(source, out, mode="ort-cpu", quant=quant)
    onnx.checker.check_model(str(out / "model.onnx"))
    return written(out) == dict(manifest.files)


# -- the graph -------------------------------------------------------------------------------------


def test_a_node_per_width_and_layer(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, tiered_plan(checkpoint))
    export(source, tmp_path / "out", mode="ort-cpu", quant="int4")
    model = onnx.load_model(tmp_path / "out" / "model.onnx", load_external_data=False)
    names = {node.name: node.op_type for node in model.graph.node}
    tiers = [name for name, kind in names.items() if kind == "QMoE"]
    layers = range(checkpoint.config.num_hidden_layers)
    assert sorted(tiers) == [
        f"/model/layers.{layer}/moe/width_{width}/QMoE"
        for layer in layers
        for width in (32, 64, 96)
    ]
    assert names["/model/layers.0/attn/GroupQueryAttention"] == "GroupQueryAttention"
    assert names["/model/layers.0/moe/router/MatMul"] == "MatMul"
    assert "If" not in names.values()


# -- padding and the cache -------------------------------------------------------------------------


def test_left_padding_fails_with_the_reason(checkpoint_of: Make, tmp_path: Path) -> None:
    export(ModelSource(Checkpoint(checkpoint_of("olmoe"))), tmp_path / "out", mode="ort-cpu")
    with pytest.raises(Exception, match="left_padding_is_not_possible_in_mode_ort-cpu"):
        Running(tmp_path / "out", slice(None)).step(24)
    assert json.loads((tmp_path / "out" / "tenp.json").read_text())["left_padding"] is False


@pytest.mark.parametrize("mode", ["portable", "ort-cpu"])
def test_tenp_json_knows_where_left_padding_works(
    mode: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    export(ModelSource(Checkpoint(checkpoint_of("deepseek_v2"))), tmp_path / "out", mode=mode)
    assert json.loads((tmp_path / "out" / "tenp.json").read_text())["left_padding"] is True


def test_padding_on_the_right_is_not_seen(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    export(ModelSource(checkpoint), tmp_path / "out", mode="ort-cpu")
    short = Running(tmp_path / "out", [0])
    short.ids = short.ids[:, :9]
    alone = short.step(9)
    padded = Running(tmp_path / "out", [0, 1])
    padded.ids = np.stack([IDS[0], np.concatenate([IDS[0, :9], np.zeros(15, np.int64)])])
    padded.mask = np.stack([MASK[0], (np.arange(24) < 9).astype(np.int64)])
    padded.positions = np.arange(24)[None].repeat(2, axis=0)
    assert relative_rms(padded.step(24)[1:, :9], alone) < 1e-5


def test_one_buffer_may_be_past_and_present(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    export(ModelSource(checkpoint), tmp_path / "out", mode="ort-cpu")
    wanted = Running(tmp_path / "out", [0]).steps(20, 1, 1)
    running = Running(tmp_path / "out", [0])
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((1, value.shape[1], 64, value.shape[3]), np.float32)
        )
        for name, value in running.cache.items()
    }
    found, done = [], 0
    for tokens in (20, 1, 1):
        binding, end = running.session.io_binding(), done + tokens
        binding.bind_cpu_input("input_ids", running.ids[:, done:end].copy())
        binding.bind_cpu_input("attention_mask", running.mask[:, :end].copy())
        binding.bind_cpu_input("position_ids", running.positions[:, done:end].copy())
        for name, value in buffers.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), value)
        binding.bind_output("logits")
        running.session.run_with_iobinding(binding)
        names = [output.name for output in running.session.get_outputs()]
        order = [name for name in names if name != "logits"] + ["logits"]
        found.append(binding.get_outputs()[order.index("logits")].numpy())
        done = end
    assert relative_rms(np.concatenate(found, axis=1), wanted) < 1e-5
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["search"]["past_present_share_buffer"] is True


def test_genai_generates_torchs_tokens_from_a_shared_cache(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    # Tied embeddings make a random model repeat its last token.
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", "qwen3_moe", tie_word_embeddings=False))
    source = ModelSource(checkpoint, tiered_plan(checkpoint))
    export(source, tmp_path / "out", mode="ort-cpu")
    prompt, length = [5, 17, 42, 99, 7, 250, 31, 8], 40
    loaded = genai.Model(str(tmp_path / "out"))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    with torch.no_grad():
        logits = model_of(source, torch.float32).eval()(torch.tensor([found])).logits[0]
    # genai forbids the end token before min_length.
    logits[:, 0] = -torch.inf
    assert len(found) == length and len(set(found[8:])) > 1
    assert found[8:] == logits.argmax(-1)[7:-1].tolist()


# -- widths ----------------------------------------------------------------------------------------


def test_limit_widths_keeps_the_levels_that_lose_least() -> None:
    widths = {0: (96, 96, 96, 90, 10, 0), 1: (10, 12, 40, 41, 41, 0)}
    assert limit_widths(widths, 6) == widths
    assert limit_widths(widths, 3) == {0: (90, 90, 90, 90, 10, 0), 1: (10, 10, 40, 40, 40, 0)}
    assert limit_widths(widths, 1) == {0: (10, 10, 10, 10, 10, 0), 1: (10, 10, 10, 10, 10, 0)}


def test_what_rounding_leaves_over_is_used() -> None:
    def make(neurons: int) -> dict[int, tuple[int, ...]]:
        """Experts that differ by one neuron each, as many neurons as asked for."""
        start = neurons // 8 - 4
        return {0: tuple(start + i for i in range(8))}

    found = limited(make, 800, 2)
    assert len(set(found[0])) == 2 and 780 < sum(found[0]) <= 800
    assert limited(make, 800, None) == make(800)


def test_limits_of_the_modes() -> None:
    def limits(mode: str, quant: str) -> tuple[int, int | None]:
        found = EXPORTER.width_limits(ExportOptions(quant, mode))
        return found.multiple, found.most

    assert limits("portable", "int4") == limits("static", "none") == (1, None)
    assert limits("ort-cpu", "none") == (1, 8)
    assert limits("ort-cpu", "int4") == limits("ort-cpu", "int8") == (32, 8)


def test_a_plan_for_ort_cpu_has_eight_legal_widths(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", "olmoe", intermediate_size=512)
    options = CompressOptions(
        calibration=CalibrationOptions(samples=2, seq_len=32),
        plan=PlanOptions(keep=0.5, format="onnx", layout="ort-cpu", quant="int4", method="free"),
        skip_checkpoint=True,
        no_validate=True,
    )
    result = run_compress(model, tmp_path / "out", options)
    widths = {width for row in result.plan.widths.values() for width in row}
    assert 2 <= len(widths) <= 8 and not any(width % 32 for width in widths)
    assert 0.45 < result.plan.keep_ratio <= 0.5
    assert Running(tmp_path / "out" / "onnx", [0]).step(24).shape == (1, 24, tiny.VOCAB)


def refuse(action: Callable[[], object], message: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert (error.value.message, error.value.hint) == (message, hint)


def test_widths_that_qmoe_cannot_take(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    widths = dict.fromkeys(checkpoint.config.moe_layers, (96, 64, 41, 32, 96, 96, 96, 96))
    source = ModelSource(checkpoint, plan_for(checkpoint, widths))
    refuse(
        lambda: EXPORTER.check(source.config, ExportOptions("int4", "ort-cpu")),
        "--mode ort-cpu --quant int4 needs expert widths in multiples of 32; layer 0 expert 2 has "
        "41",
        "plan --set width-multiple=32, or --mode portable --quant int4, which takes any width",
    )
    odd = Checkpoint(tiny.make(tmp_path / "odd", "mixtral", hidden_size=48))
    refuse(
        lambda: EXPORTER.check(odd.config, ExportOptions("int8", "ort-cpu")),
        "--mode ort-cpu --quant int8 needs a hidden size in multiples of 32; this model has 48",
        "--mode portable --quant int8, which takes any width",
    )


def test_a_multiple_that_the_mode_cannot_take(checkpoint_of: Make, tmp_path: Path) -> None:
    options = CompressOptions(
        plan=PlanOptions(keep=0.5, format="onnx", layout="ort-cpu", quant="int4", width_multiple=8),
    )
    refuse(
        lambda: run_compress(checkpoint_of("olmoe"), tmp_path / "out", options),
        "--set width-multiple=8: the format takes multiples of 32",
        "--set width-multiple=32",
    )


@pytest.mark.parametrize("mode", ["ort-cpu", "static"])
def test_experts_that_its_operators_do_not_know_are_refused(mode: str, checkpoint_of: Make) -> None:
    config = Checkpoint(checkpoint_of("gemma4_text")).config
    why = {
        "ort-cpu": "its operators for experts have no GELU",
        "static": "which places of a fixed cache a window covers changes from token to token",
    }
    refuse(
        lambda: EXPORTER.check(config, ExportOptions("none", mode)),
        f"--mode {mode} cannot hold gemma4: {why[mode]}",
        "--mode portable"
        + (" without --target, --batch, --length and --past" if mode == "static" else ""),
    )

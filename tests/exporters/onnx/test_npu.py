"""NPU profiles, static int8 and the ranges it takes: planned, written, run and validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import tiny
from support.onnx_directories import ragged_source, torch_logits
from support.references import reference_model
from support.static_graphs import BATCH, LENGTH, PAST, in_chunks, left_padded

from tenp_edge.calibration.activation_ranges import Ranges, Span, load_ranges
from tenp_edge.calibration.range_measuring import measure_ranges
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import NO_DATA, ExportData, ExportOptions, FixedLengths, exporter
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.exporters.onnx.targets import TARGETS
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models import FAMILIES
from tenp_edge.planning.options.devices import load_profile, profile_names
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.runtime.onnx.model import OnnxModel
from tenp_edge.verbs import options as take
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.export import run_export

Make = Callable[[str], Path]
LENGTHS = FixedLengths(BATCH, LENGTH, PAST)
NPUS = [name for name in profile_names() if load_profile(name).layout == "static"]
CPU = torch.device("cpu")


def domain(sequences: int = 6, tokens: int = 64) -> Domain:
    """Random tokens, the last sequence short."""
    drawn = torch.randint(
        0, tiny.VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(1)
    )
    lengths = torch.tensor([tokens] * (sequences - 1) + [tokens // 2])
    drawn[-1, tokens // 2 :] = 0
    return Domain("random", drawn, lengths)


def measured(source: ModelSource) -> ExportData:
    ranges = measure_ranges(source, [domain()], device=CPU, dtype=torch.float32)
    return ExportData(ranges=ranges)


def int8(source: ModelSource, data: ExportData, target: Path, *targets: str) -> Path:
    options = ExportOptions("int8", "static", lengths=LENGTHS, targets=targets)
    manifest = EXPORTER.write(source, options, target, data)
    assert {file.name: file.stat().st_size for file in target.iterdir()} == manifest.files
    return target


def relative_rms(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))


# -- profiles and plans ----------------------------------------------------------------------------


def planned(checkpoint: Path, profile: str, **choices: object) -> CompressionPlan:
    request = PlanOptions(keep=0.6, method="tenp", **choices)  # type: ignore[arg-type]
    return make_plan(Checkpoint(checkpoint), load_profile(profile), request, confirm=True)


@pytest.mark.parametrize("name", NPUS)
def test_an_npu_profile_gives_lengths_and_compilers(checkpoint_of: Make, name: str) -> None:
    profile = load_profile(name)
    assert len(NPUS) >= 3 and profile.targets and set(profile.targets) <= set(TARGETS)
    record = planned(checkpoint_of("qwen3_moe"), name).record
    assert (record.format, record.layout, record.quant) == ("onnx", "static", "int8")
    assert record.targets == profile.targets
    # The tiny model has 512 positions: the profile's context ends there.
    assert record.lengths == {"batch": 1, "length": profile.ubatch, "past": 511}


def test_flags_go_before_the_profile(checkpoint_of: Make) -> None:
    plan = planned(
        checkpoint_of("qwen3_moe"), "phone-nnapi", context=128, ubatch=16, batch=2, targets=("qnn",)
    )
    assert plan.record.lengths == {"batch": 2, "length": 16, "past": 127}
    assert plan.record.targets == ("qnn",)
    # 3 layers of 2 heads, keys and values of 32 floats, 127 places, 2 sequences: held once.
    assert plan.memory["kv_bytes"] == 3 * 2 * 2 * 32 * 4 * 127 * 2


def test_a_context_that_the_model_does_not_have(checkpoint_of: Make) -> None:
    with pytest.raises(UserError) as caught:
        planned(checkpoint_of("qwen3_moe"), "phone-nnapi", context=1024)
    assert caught.value.message == "--context 1024 is more than the 512 tokens that the model knows"
    assert caught.value.hint is not None and "--context 512" in caught.value.hint


def test_free_shapes_have_no_batch(checkpoint_of: Make) -> None:
    with pytest.raises(UserError) as caught:
        planned(checkpoint_of("qwen3_moe"), "laptop-8gb", batch=2)
    assert caught.value.message == (
        "--set batch is for fixed shapes; layout per-expert of format gguf has none"
    )
    assert caught.value.hint == "--format onnx --mode static"


def test_fixed_shapes_cost_every_expert(checkpoint_of: Make) -> None:
    """Dense experts read all weights for a token, portable ones 2 of 8."""
    fixed = planned(checkpoint_of("qwen3_moe"), "phone-nnapi", quant="none", context=16)
    free = planned(
        checkpoint_of("qwen3_moe"), "phone-nnapi", quant="none", context=16, layout="portable"
    )
    assert fixed.memory["tokens_per_second"] < free.memory["tokens_per_second"]
    assert fixed.memory["kv_bytes"] < free.memory["kv_bytes"]


# -- ranges ----------------------------------------------------------------------------------------


def test_ranges_are_those_of_transformers(checkpoint_of: Make) -> None:
    """Hooks on the whole model in transformers see the same extremes; biases are told apart."""
    path, text = checkpoint_of("qwen2_moe"), domain()
    ranges = measure_ranges(ModelSource(Checkpoint(path)), [text], device=CPU, dtype=torch.float32)
    model = reference_model(path, dtype=torch.float32).eval()
    names = [
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.self_attn.o_proj",
        "model.layers.1.mlp.shared_expert.down_proj",
        "lm_head",
    ]
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, given, out, kept=seen[name]: kept.append((given[0], out))
        )
    with torch.no_grad():
        for row, length in zip(text.tokens, text.lengths, strict=True):
            model(row[None, :length])
    for name in names:
        given, out = (torch.cat([pair[i].flatten() for pair in seen[name]]) for i in range(2))
        found = ranges[f"{name}.weight"]
        for values, span in ((given, found.given), (out, found.output)):
            assert span.least == pytest.approx(min(0.0, float(values.min())), rel=1e-4, abs=1e-6)
            assert span.most == pytest.approx(max(0.0, float(values.max())), rel=1e-4, abs=1e-6)
    q = ranges["model.layers.1.self_attn.q_proj.weight"]
    assert q.product != q.output, "qwen2_moe's q has a bias"


@pytest.mark.parametrize("family", tiny.ONNX_FAMILIES)
def test_every_matrix_has_a_range(checkpoint_of: Make, family: str, tmp_path: Path) -> None:
    """Also those of experts that nothing was routed to."""
    source = ragged_source(checkpoint_of(family))
    one = Domain("one", torch.tensor([[5, 17, 99]]), torch.tensor([3]))
    ranges = measure_ranges(source, [one], device=CPU, dtype=torch.float32)
    for layer, row in source.config.expert_widths.items():
        given = {
            ranges[source.config.expert_tensor(layer, expert, projection)].given
            for expert in range(len(row))
            for projection in (0, 1)
        }
        assert len(given) == 1, "all experts of a layer are given the same tensor"
        for expert in range(len(row)):
            down = ranges[source.config.expert_tensor(layer, expert, 2)]
            assert down.given.least < 0 < down.given.most
    ranges.save(tmp_path / "ranges.json")
    assert load_ranges(tmp_path / "ranges.json") == ranges


def test_damaged_ranges(tmp_path: Path) -> None:
    file = tmp_path / "ranges.json"
    Ranges("model", "data", 1, {}).save(file)
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | {"ranges": {"a": [1, 2]}}))
    with pytest.raises(UserError, match="is damaged"):
        load_ranges(file)
    file.write_text(json.dumps(raw | {"version": 0}))
    with pytest.raises(UserError, match="holds no ranges of version 1"):
        load_ranges(file)


def test_spans_join() -> None:
    assert Span(-1, 2) | Span(-3, 1) == Span(-3, 2)


# -- static int8 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.STATIC_FAMILIES)
def test_int8_is_near_float(checkpoint_of: Make, tmp_path: Path, family: str) -> None:
    """Measured 0.036 to 0.055. Where sigmoid scores lie close together, the rounding routes some
    tokens elsewhere: 0.23 in the tiny deepseek_v3."""
    data = measured(source := ragged_source(checkpoint_of(family)))
    EXPORTER.write(source, ExportOptions("none", "static", lengths=LENGTHS), tmp_path / "float")
    int8(source, data, tmp_path / "int8", "nnapi", "openvino", "qnn")
    real = left_padded()[1].bool().numpy()
    wanted = in_chunks(tmp_path / "float")[real]
    error = relative_rms(in_chunks(tmp_path / "int8")[real], wanted)
    assert 1e-3 < error < (0.3 if FAMILIES[family].router_score == "sigmoid" else 0.1)
    onnx.checker.check_model(str(tmp_path / "int8" / "decode.onnx"), full_check=True)


def test_qnn_alone_gets_16_bits_for_activations(checkpoint_of: Make, tmp_path: Path) -> None:
    data = measured(source := ragged_source(checkpoint_of("olmoe")))
    narrow = int8(source, data, tmp_path / "narrow", "openvino", "qnn")
    wide = int8(source, data, tmp_path / "wide", "qnn")
    types = {}
    for directory in (narrow, wide):
        graph = onnx.load(directory / "decode.onnx", load_external_data=False).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        types[directory.name] = {
            kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"
        }
    assert types == {"narrow": {onnx.TensorProto.UINT8}, "wide": {onnx.TensorProto.UINT16}}
    tokens = [5, 17, 99, 300, 120, 44, 7]
    with OnnxModel(narrow) as model:
        rough = model.logits(tokens)
    with OnnxModel(wide) as model:
        fine = model.logits(tokens)
    wanted = torch_logits(source, tokens).numpy()
    assert relative_rms(fine, wanted) < 0.7 * relative_rms(rough, wanted)


def test_routers_stay_float_and_weights_read_back(checkpoint_of: Make, tmp_path: Path) -> None:
    """The tied output matrix is int8, the table of the same name that ids look up is not."""
    data = measured(source := ragged_source(checkpoint_of("qwen3_moe")))
    out = int8(source, data, tmp_path / "int8")
    graph = onnx.load(out / "prefill.onnx", load_external_data=False).graph
    routers = [node for node in graph.node if "/moe/router/" in node.name]
    assert routers and not any("Linear" in node.op_type for node in routers)
    given = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert all(f"/model/layers.{layer}/moe/rows/Reshape/out" in given for layer in range(3)), (
        "what all experts are given is quantised once"
    )
    stored = exporter("onnx").read_back(out, source.checkpoint.config)
    for name, spec in source.tensors.items():
        wanted = source.read(name).float()
        found = stored.read(name)
        if len(spec.shape) == 1 or spec.part == "router" or spec.role == "embed":
            assert torch.equal(found, wanted), name
        else:
            half = wanted.abs().amax(dim=1, keepdim=True) / 127 / 2
            assert ((found - wanted).abs() <= half * 1.001).all(), name
            assert torch.equal(stored.read_rows(name, 3, 9), found[3:9])
    head = "model.embed_tokens.weight"
    assert not torch.equal(stored.held(head)(3, 9), source.read(head)[3:9].float())


def test_coreml_refuses_int8_with_the_reason(checkpoint_of: Make, tmp_path: Path) -> None:
    data = measured(source := ragged_source(checkpoint_of("qwen3_moe")))
    with pytest.raises(UserError) as caught:
        int8(source, data, tmp_path / "out", "coreml")
    message = caught.value.message
    assert message.startswith("CoreML (ML Program) does not take ")
    assert "Linear at /model/" in message and message.endswith(f"not in {TARGETS['coreml'].source}")
    assert not (tmp_path / "out").exists()


def test_without_ranges_int8_is_refused(checkpoint_of: Make, tmp_path: Path) -> None:
    source = ragged_source(checkpoint_of("qwen3_moe"))
    with pytest.raises(UserError) as caught:
        int8(source, NO_DATA, tmp_path / "out")
    assert caught.value.message == (
        "--mode static --quant int8 has fixed scales for activations, whose ranges were not "
        "measured"
    )


# -- the whole road --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`compress --profile phone-nnapi` on the tiny qwen2_moe, context 96."""
    out = tmp_path_factory.mktemp("npu") / "out"
    options = take.CompressOptions(
        calibration=take.CalibrationOptions(samples=2, seq_len=64, device="cpu"),
        plan=take.PlanOptions(profile="phone-nnapi", keep=0.6, context=96, ubatch=16, batch=2),
        validation=take.ValidationOptions(samples=1, seq_len=128, threads=1),
    )
    run_compress(checkpoint_of("qwen2_moe"), out, options)
    return out


def test_compress_for_an_npu(compressed: Path) -> None:
    """Planned bytes are written bytes; sequences of 128 were cut to the context of 96."""
    plan = json.loads((compressed / "plan.json").read_text())
    for name, size in plan["files"].items():
        assert (compressed / name).stat().st_size == size, name
    report = json.loads((compressed / "validation.json").read_text())
    assert report["judged_through"] == "onnxruntime (static)"
    assert [loss["stage"] for loss in report["losses"]] == ["pruning", "quantisation", "export"]
    checks = {check["way"]: check for check in report["graph_checks"]}
    assert set(checks) == {"prefill", "cached decode", "chunked prefill", "left padding"}
    for check in checks.values():
        assert check["note"] is None and 1e-3 < check["relative_rms"] < 0.1, check
    assert len(list((compressed / "calibration").glob("ranges-*.json"))) == 1
    assert report["overall"]["mean_kl"] < 0.5


def test_export_takes_the_ranges_that_compress_left(compressed: Path, tmp_path: Path) -> None:
    """The pruned checkpoint and the plan are the same model: same bytes, and nothing measured."""
    directory = compressed / "calibration"
    file = next(directory.glob("ranges-*.json"))
    before = file.stat().st_mtime_ns
    options = ExportOptions("int8", "static", lengths=FixedLengths(2, 16, 95), targets=("nnapi",))
    target = tmp_path / "again"
    run_export(
        compressed / "checkpoint",
        target,
        "onnx",
        replace(options, imatrix=True),
        statistics=directory,
    )
    assert file.stat().st_mtime_ns == before
    for name in ("prefill.onnx", "decode.onnx", "model.data"):
        assert (target / name).read_bytes() == (compressed / "onnx" / name).read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_left_padding_of_fixed_batches(checkpoint_of: Make, tmp_path: Path, batch: int) -> None:
    """Fewer rows than sequences: in turns; more: the rest is filled. Several chunks each."""
    source = ragged_source(checkpoint_of("qwen3_moe"))
    options = ExportOptions("none", "static", lengths=FixedLengths(batch, 4, 24))
    EXPORTER.write(source, options, tmp_path / "out")
    sequences = [[5, 17, 99, 300, 120, 44, 7, 8, 9, 10], [7, 200, 3], [9], [1, 2, 3, 4, 5]]
    with OnnxModel(tmp_path / "out") as model:
        found = model.padded_logits(sequences)
        with pytest.raises(UserError, match="26 tokens are beyond the context of the graphs, 25"):
            model.padded_logits([list(range(26))])
    for logits, tokens in zip(found, sequences, strict=True):
        assert relative_rms(logits, torch_logits(source, tokens).numpy()) < 1e-5

"""Quantised files are llama.cpp's own, tensor by tensor and byte by byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support import tiny
from support.command import refused, run
from support.gguf_cases import random_plan
from support.llama_quantize import Floats, quantize

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.imatrix import Importance, Squares, importance_of
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.forward.text_batch import Domain
from tenp_edge.verbs.export import run_export

Make = Callable[..., Path]
QUANTISED = tuple(q for q in EXPORTER.quants if q not in ("F32", "F16", "BF16"))
WEIGHED_ONLY = ("IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
# Rows of 256 fit K-quants, rows of 96 take every fallback; 18 layers reach every layer rule.
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64}
DEEP = WIDE | {"num_hidden_layers": 18}
_ROPE = {"rope_theta": 1e7, "rope_type": "default", "mrope_section": [3, 3, 2]}
DELTA = {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "full_attention_interval": 4}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def write(family: str, **changes: Any) -> Path:
        return tiny.make(tmp_path_factory.mktemp(family) / "model", family, **changes)

    return write


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def export(
    source: ModelSource, file: Path, quant: str, matrix: Importance | None = None, **options: Any
) -> None:
    EXPORTER.write(source, ExportOptions(quant, **options), file, ExportData(matrix))


# -- types -----------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", DEEP | {"num_experts": 5}),
    "eight experts": ("qwen3_moe", DEEP),
    "grouped": ("qwen3_moe", DEEP | {"num_experts": 6, "num_key_value_heads": 1}),
    "qwen2_moe": ("qwen2_moe", DEEP | {"shared_expert_intermediate_size": 256}),
    "olmoe": ("olmoe", DEEP | {"num_experts": 4}),
    "mixtral": ("mixtral", DEEP | {"num_local_experts": 8}),
    "deepseek_v2": ("deepseek_v2", WIDE | {"num_hidden_layers": 17, "head_dim": None}),
    # Five of six layers have an attn_v.
    "gemma4": ("gemma4_text", DEEP | {"num_experts": 5, "layer_types": None}),
    "gemma4, grouped": (
        "gemma4_text",
        DEEP | {"num_experts": 5, "num_key_value_heads": 1, "layer_types": None},
    ),
    "deepseek_v3": ("deepseek_v3", WIDE | {"num_hidden_layers": 17, "head_dim": None}),
    # Six of 18 layers have an attn_v; the first, which llama.cpp asks for heads, has none.
    "lfm2_moe": ("lfm2_moe", DEEP | {"layer_types": tiny.CONFIGS["lfm2_moe"]["layer_types"] * 6}),
    "qwen3_next": ("qwen3_next", DEEP | DELTA),
    "qwen3_next, grouped": (
        "qwen3_next",
        DEEP | DELTA | {"num_experts": 5, "num_key_value_heads": 1},
    ),
    "qwen3_5_moe": (
        "qwen3_5_moe",
        DEEP | DELTA | {"num_experts": 5, "layer_types": None, "rope_parameters": _ROPE},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_recipes_are_llama_cpps(shape: str, make: Make, tmp_path: Path) -> None:
    family, changes = SHAPES[shape]
    checkpoint = Checkpoint(make(family, **changes))
    export(ModelSource(checkpoint), tmp_path / "f32.gguf", "F32")
    some = {"blk.0.attn_output.weight": np.ones(256, np.float32)}
    for quant in QUANTISED:
        for imatrix in (some,) if quant in WEIGHED_ONLY else (None, some):
            wanted = quantize(
                tmp_path / "f32.gguf", tmp_path / "none", quant, imatrix=imatrix, dry_run=True
            )
            options = ExportOptions(quant, "merged", imatrix=imatrix is not None)
            manifest = EXPORTER.manifest(checkpoint, checkpoint.config, options)
            assert {t.name: t.type for t in manifest.tensors} == wanted, quant


# -- bytes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(make: Make) -> Checkpoint:
    """Two layers wide enough for K-quants, in bf16 as real models are."""
    return wide_model(make, 2)


def wide_model(make: Make, layers: int) -> Checkpoint:
    changes = WIDE | {"num_hidden_layers": layers, "moe_intermediate_size": 256}
    changes |= {"num_experts": 3, "shared_expert_intermediate_size": 256}
    changes |= {"torch_dtype": "bfloat16"}
    return Checkpoint(make("qwen2_moe", **changes))


@pytest.fixture(scope="module")
def statistics(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return calibrated(model, tmp_path_factory.mktemp("work"))


def calibrated(model: Checkpoint, work: Path) -> Statistics:
    generator = torch.Generator().manual_seed(5)
    domains = [
        Domain(name, torch.randint(0, tiny.VOCAB, (2, 40), generator=generator), torch.tensor(used))
        for name, used in (("code", [40, 31]), ("prose", [40, 40]))
    ]
    return calibrate(model, domains, work, dtype="float32")


@pytest.fixture(scope="module")
def shallow(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Statistics]:
    """One layer of it, which has a tensor of every role: what a type does to bytes is the same in
    every layer, and which layer takes which type is checked without bytes."""
    model = wide_model(make, 1)
    return model, calibrated(model, tmp_path_factory.mktemp("shallow"))


def read_imatrix(file: Path) -> dict[str, Floats]:
    """Means of squares as llama-quantize makes them of an imatrix file (load_imatrix)."""
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.type"].contents() == "imatrix"
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    found: dict[str, Floats] = {}
    for name, sums in stored.items():
        if name.endswith(".in_sum2"):
            name = name.removesuffix(".in_sum2")
            counts = stored[f"{name}.counts"].reshape(-1, 1)
            safe = np.where(counts > 0, counts, np.float32(1))
            found[name] = np.where(counts > 0, sums.reshape(len(counts), -1) / safe, np.float32(1))
    return found


@pytest.mark.parametrize("kind", ("whole", "uniform"))
@pytest.mark.parametrize("imatrix", (False, True))
def test_merged_bytes_are_llama_cpps(
    imatrix: bool, kind: str, shallow: tuple[Checkpoint, Statistics], tmp_path: Path
) -> None:
    """With rows of 256 and of 128, which take the fallbacks; the matrix through its own file."""
    model, statistics = shallow
    plan = random_plan(model, kind)
    source, matrix = ModelSource(model, plan), Importance(statistics, plan)
    matrix_file = tmp_path / "imatrix.gguf"
    chosen = {"matrix": matrix, "layout": "merged"}
    export(source, tmp_path / "f32.gguf", "F32", **chosen, imatrix_file=str(matrix_file))
    theirs = read_imatrix(matrix_file)
    assert len(theirs) == 3 + 4 + 3  # experts, attention, shared expert
    weighed = WEIGHED_ONLY if imatrix and kind == "uniform" else ()  # which take long
    for quant in (q for q in QUANTISED if q not in WEIGHED_ONLY or q in weighed):
        judge = tmp_path / "judge.gguf"
        quantize(tmp_path / "f32.gguf", judge, quant, imatrix=theirs if imatrix else None)
        export(source, tmp_path / "ours.gguf", quant, **chosen, imatrix=imatrix)
        ours, wanted = tensors(tmp_path / "ours.gguf"), tensors(judge)
        assert set(ours) == set(wanted)
        for name, tensor in wanted.items():
            assert ours[name].tensor_type == tensor.tensor_type, name
            assert ours[name].data.tobytes() == tensor.data.tobytes(), f"{quant} {name}"


def test_rules_are_llama_cpps(model: Checkpoint, tmp_path: Path) -> None:
    """--tensor-type, legal or not, in both layouts."""
    rules = {"ffn_down_exps": "Q6_K", r"blk\.0\.attn_[qk]": "Q5_0", "attn_": "IQ4_XS"}
    source = ModelSource(model)
    texts = tuple(f"{pattern}={kind}" for pattern, kind in rules.items())
    export(source, tmp_path / "f32.gguf", "F32")
    wanted = quantize(
        tmp_path / "f32.gguf", tmp_path / "none", "Q4_K_S", overrides=rules, dry_run=True
    )
    options = ExportOptions("Q4_K_S", "merged", tensor_types=texts)
    manifest = EXPORTER.manifest(model, model.config, options)
    assert {t.name: t.type for t in manifest.tensors} == wanted
    assert wanted["blk.0.attn_k.weight"] == "Q5_0" and wanted["blk.1.attn_k.weight"] == "IQ4_XS"
    options = ExportOptions("Q4_K_S", "per-expert", tensor_types=(*texts, r"ffn_up\.2\.=q8_0"))
    types = {t.name: t.type for t in EXPORTER.manifest(model, model.config, options).tensors}
    assert types["blk.1.ffn_down.2.weight"] == "Q6_K" and types["blk.1.ffn_up.2.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.1.weight"] == "Q4_K"


def test_an_expert_alone_is_its_slice(
    model: Checkpoint, statistics: Statistics, tmp_path: Path
) -> None:
    """Per-expert and padded files hold the bytes of the merged one where the widths are the same;
    padding is zeros."""
    plan = random_plan(model, "uniform")
    source, matrix = ModelSource(model, plan), Importance(statistics, plan)
    for layout in EXPORTER.layouts:
        export(source, tmp_path / f"{layout}.gguf", "Q4_K_M", matrix, layout=layout, imatrix=True)
    merged, alone = tensors(tmp_path / "merged.gguf"), tensors(tmp_path / "per-expert.gguf")
    padded = tensors(tmp_path / "padded.gguf")
    for layer in model.config.moe_layers:
        for projection in ("gate", "up", "down"):
            stack = merged[f"blk.{layer}.ffn_{projection}_exps.weight"]
            for expert, rows in enumerate(stack.data):
                own = alone[f"blk.{layer}.ffn_{projection}.{expert}.weight"]
                assert own.tensor_type == stack.tensor_type and np.array_equal(own.data, rows)
        wide = padded[f"blk.{layer}.ffn_gate_exps.weight"]
        narrow = merged[f"blk.{layer}.ffn_gate_exps.weight"]
        assert np.array_equal(wide.data[:, :128], narrow.data)
        down = padded[f"blk.{layer}.ffn_down_exps.weight"]
        assert down.tensor_type.name in ("Q4_K", "Q6_K")  # 256 wide again, no fallback
        values = gguf.dequantize(down.data, down.tensor_type)
        assert values[..., :128].any() and not values[..., 128:].any()


def test_fallbacks_are_said(model: Checkpoint) -> None:
    config = ModelSource(model, random_plan(model, "uniform")).config
    manifest = EXPORTER.manifest(model, config, ExportOptions("Q4_K_S", "per-expert"))
    assert manifest.notes == (
        "6 tensors (expert_down, rows of 128) take Q5_0: Q4_K needs a multiple of 256",
    )


# -- importance ------------------------------------------------------------------------------------


def test_importance_lowers_the_weighted_error(
    model: Checkpoint, statistics: Statistics, tmp_path: Path
) -> None:
    """The error that the matrix weighs by; bytes differ, sizes do not."""
    importance = Importance(statistics)
    source = ModelSource(model)
    weighted = importance.expert(1, 2, "down").weights().numpy()
    exact = model.expert(1, 2).down.float().numpy()
    errors = {}
    for imatrix in (False, True):
        file = tmp_path / f"{imatrix}.gguf"
        export(source, file, "Q3_K_M", importance, layout="per-expert", imatrix=imatrix)
        tensor = tensors(file)["blk.1.ffn_down.2.weight"]
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        errors[imatrix] = float((((found - exact) ** 2) * weighted).sum())
    assert errors[True] < 0.97 * errors[False]  # random weights leave little to gain
    assert (tmp_path / "True.gguf").stat().st_size == (tmp_path / "False.gguf").stat().st_size


def test_importance_is_sliced_and_adds_up(model: Checkpoint, statistics: Statistics) -> None:
    plan = random_plan(model, "uniform")
    cut, whole = Importance(statistics, plan), Importance(statistics)
    kept, full = cut.expert(1, 1, "down"), whole.expert(1, 1, "down")
    assert torch.equal(kept.sums, full.sums[plan.neurons(1, 1)])
    assert torch.equal(cut.expert(1, 1, "up").sums, whole.expert(1, 1, "gate").sums)
    by_domain = [statistics.layer(name, 1) for name in ("code", "prose")]
    assert torch.equal(full.sums, sum(s["activation_sq"][1] for s in by_domain).float())
    assert full.tokens == sum(int(s["tokens"][1]) for s in by_domain)
    assert whole.tokens == 40 + 31 + 40 + 40
    queries, keys = whole.matrix(0, "q"), whole.matrix(0, "k")
    assert queries is not None and keys is not None and torch.equal(queries.sums, keys.sums)
    assert whole.matrix(0, "embed") is None


@pytest.mark.parametrize("quant", WEIGHED_ONLY)
def test_few_bits_need_a_matrix(quant: str, model: Checkpoint) -> None:
    with pytest.raises(UserError) as error:
        EXPORTER.manifest(model, model.config, ExportOptions(quant))
    assert str(error.value) == (
        f"{quant} needs an importance matrix\n"
        "try: --calibration WORK (tenp-edge calibrate MODEL -o WORK) "
        "without --no-imatrix, or --quant Q2_K"
    )


def test_a_matrix_without_importance_is_encoded_too(model: Checkpoint, tmp_path: Path) -> None:
    """ggml ends the process there: a rule of the user's, or a matrix that has no sums."""
    for kind in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M", "IQ3_XXS"):
        rules = (f"ffn_up_exps={kind}",)
        export(ModelSource(model), tmp_path / kind, "Q4_0", tensor_types=rules)
        tensor = tensors(tmp_path / kind)["blk.1.ffn_up_exps.weight"]
        stored = gguf.dequantize(tensor.data, tensor.tensor_type)
        exact = torch.stack([model.expert(1, expert).up for expert in range(3)]).float().numpy()
        assert tensor.tensor_type.name == kind
        assert float(((stored - exact) ** 2).sum() / (exact**2).sum()) < 0.5


def test_an_unreached_expert_weighs_all_columns_alike() -> None:
    assert torch.equal(Squares(torch.zeros(3), 0).weights(), torch.ones(3))


# -- refusals and notes ----------------------------------------------------------------------------

RULES = {
    "attn_v": ("--tensor-type 'attn_v' is not REGEX=TYPE", "--tensor-type 'attn_v=Q8_0'"),
    "attn_v=Q4_K_M": (
        "--tensor-type 'attn_v=Q4_K_M': 'Q4_K_M' is not a tensor type",
        "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4, NVFP4, Q2_K, Q3_K, "
        "Q4_K, Q5_K, Q6_K, IQ4_XS, IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S, TQ2_0, "
        "TQ1_0",
    ),
    "attn_(=Q8_0": (
        "--tensor-type 'attn_(=Q8_0': missing ), unterminated subpattern at position 5",
        "a regular expression, as in 'attn_v=Q8_0'",
    ),
    "atn=Q8_0": (
        "--tensor-type 'atn=Q8_0' matches no tensor that an earlier rule has not taken",
        "a regular expression for names such as blk.0.attn_k.weight or token_embd.weight",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_make_no_sense_are_refused(rule: str, model: Checkpoint) -> None:
    options = ExportOptions("Q4_K_M", tensor_types=(rule,))
    with pytest.raises(UserError) as caught:
        EXPORTER.manifest(model, model.config, options)
    assert (caught.value.message, caught.value.hint) == RULES[rule]


def test_importance_needs_statistics_of_this_model(
    model: Checkpoint, statistics: Statistics, make: Make, tmp_path: Path
) -> None:
    other = Checkpoint(make("olmoe"))
    with pytest.raises(UserError, match=r"^the statistics belong to another checkpoint \("):
        importance_of(other, statistics)
    with pytest.raises(UserError, match=r"^the statistics belong to another checkpoint \("):
        Importance(statistics, random_plan(other, "ragged"))
    with pytest.raises(UserError, match=r"^an importance matrix needs calibration statistics"):
        export(ModelSource(model), tmp_path / "model.gguf", "Q4_K_M", imatrix=True)
    assert not list(tmp_path.iterdir())


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """compress --quant Q4_K_M of a model whose narrow experts take fallbacks."""
    path = make("qwen3_moe", **WIDE, moe_intermediate_size=256, num_experts=4, num_hidden_layers=2)
    out = tmp_path_factory.mktemp("quant") / "out"
    sizes = ("--samples", 2, "--seq-len", 64, "--set", "eval-samples=1", "--set", "eval-seq-len=64")
    done = run("compress", path, "--keep", 0.6, "--quant", "Q4_K_M", *sizes, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def test_compress_quantises_and_predicts_the_bytes(compressed: Path) -> None:
    plan = load_plan(compressed / "plan.json")
    assert (plan.record.quant, plan.record.imatrix) == ("Q4_K_M", True)
    assert plan.files["model.gguf"] == (compressed / "model.gguf").stat().st_size
    assert any("take Q5_0: Q4_K needs a multiple of 256" in n for n in plan.record.notes)
    assert json.loads((compressed / "validation.json").read_text())["overall"]["mean_kl"] > 0


def test_export_of_the_pruned_checkpoint_is_the_same_file(compressed: Path, tmp_path: Path) -> None:
    """Its neurons are found in plan.json beside it; without statistics there is no matrix."""
    checkpoint, work = compressed / "checkpoint", compressed / "calibration"
    command = ("export", checkpoint, "--quant", "Q4_K_M", "--calibration", work)
    again = tmp_path / "again.gguf"
    done = run(*command, "-o", again, "--imatrix-out", tmp_path / "imatrix.gguf")
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (compressed / "model.gguf").read_bytes()
    assert len(read_imatrix(tmp_path / "imatrix.gguf")) == 2 * (4 + 3 * 4)
    options, plain = ExportOptions("Q4_K_M"), tmp_path / "plain.gguf"
    run_export(checkpoint, plain, "gguf", options, statistics=work)
    assert plain.stat().st_size == again.stat().st_size
    assert plain.read_bytes() != again.read_bytes()


def test_a_pruned_checkpoint_needs_its_plan(compressed: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(compressed / "checkpoint", tmp_path / "sub" / "moved")
    work, file = compressed / "calibration", tmp_path / "model.gguf"
    options = ExportOptions("Q4_K_M", imatrix=True)
    with pytest.raises(UserError) as caught:
        run_export(moved, file, "gguf", options, statistics=work)
    assert (caught.value.message, caught.value.hint) == (
        f"{moved} does not say which neurons it kept, and there is no "
        f"{tmp_path / 'sub' / 'plan.json'}",
        "--plan with the plan.json that it was pruned by, or --no-imatrix",
    )
    run_export(moved, file, "gguf", options, compressed / "plan.json", statistics=work)
    assert file.read_bytes() == (compressed / "model.gguf").read_bytes()


def test_imatrix_out_without_statistics_is_refused(compressed: Path, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "model.gguf", "--imatrix-out", tmp_path / "imatrix.gguf")
    assert refused("export", compressed / "checkpoint", *files) == (
        "error: --imatrix-out has no importance matrix to write\ntry:   --calibration WORK\n"
    )

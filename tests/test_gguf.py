"""A GGUF file is the manifest that announced it, and computes what the model computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf_cases import (
    assert_close,
    export,
    llama_logits,
    random_plan,
    torch_logits,
    write_dropped,
)

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.progress import QUIET
from tenp_edge.registry import ExportOptions
from tenp_edge.runtime.llamacpp import LlamaCppModel
from tenp_edge.runtime.peak import measure_peak_rss
from tenp_edge.source import ModelSource

Make = Callable[[str], Path]
QUANTS = EXPORTER.quants


def opened(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def plan_for(layout: str) -> str:
    return "uniform" if layout == "merged" else "ragged"


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", EXPORTER.layouts)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_manifest_is_what_is_written(
    family: str, layout: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, random_plan(checkpoint, plan_for(layout)))
    for quant in QUANTS:
        options = ExportOptions(quant, layout)
        manifest = EXPORTER.manifest(checkpoint, source.config, options)
        file = tmp_path / f"{quant}.gguf"
        assert EXPORTER.write(source, options, file, QUIET) == manifest
        assert file.stat().st_size == manifest.file_bytes
        written = opened(file)
        assert list(written) == [tensor.name for tensor in manifest.tensors]
        for tensor in manifest.tensors:
            stored = written[tensor.name]
            assert tuple(reversed(stored.shape.tolist())) == tensor.shape
            assert stored.tensor_type.name == tensor.type and stored.n_bytes == tensor.nbytes
    assert not list(tmp_path.glob("*.partial"))


def test_parts_and_notes(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    config = ModelSource(checkpoint, random_plan(checkpoint, "ragged")).config
    manifest = EXPORTER.manifest(checkpoint, config, ExportOptions("Q8_0"))
    routed = [t for t in manifest.tensors if t.part == "routed experts"]
    assert {t.part for t in manifest.tensors} == {"routed experts", "other"}
    assert len(routed) == 3 * 3 * 8 and all(".ffn_" in t.name for t in routed)
    narrow = sum(width == 40 for row in config.expert_widths.values() for width in row)
    assert narrow > 1
    assert manifest.notes == (
        f"{narrow} tensors (expert_down, rows of 40) take F16: Q8_0 needs a multiple of 32",
    )


def test_killed_write_leaves_nothing_under_the_name(
    checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("olmoe")))
    file = tmp_path / "model.gguf"

    def fail(layer: int, expert: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "expert", fail)
    with pytest.raises(KeyboardInterrupt):
        export(source, file)
    assert list(tmp_path.iterdir()) == []


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dense_model_in_llama_cpp(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    source = ModelSource(Checkpoint(checkpoint_of(family)))
    manifest = export(source, tmp_path / "model.gguf")
    assert manifest.layout == "merged"
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(source.checkpoint.path))


@pytest.mark.parametrize("layout", ["merged", "padded"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_model_in_llama_cpp(
    family: str, layout: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = random_plan(checkpoint, plan_for(layout))
    export(ModelSource(checkpoint, plan), tmp_path / "model.gguf", layout=layout)
    wanted = torch_logits(checkpoint.path, plan)
    assert_close(llama_logits(tmp_path / "model.gguf"), wanted)
    assert np.abs(torch_logits(checkpoint.path) - wanted).max() > 0.01


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral", "deepseek_v2"])
def test_removed_experts_in_llama_cpp(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, random_plan(checkpoint, "drop"))
    export(source, tmp_path / "model.gguf")
    smaller = write_dropped(source, tmp_path / "smaller")
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(smaller))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MSCALE = {"mscale": 1.0, "mscale_all_dim": 1.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("qwen3_moe", {"rope_scaling": YARN}),
    "yarn attention factor": ("olmoe", {"rope_scaling": YARN | {"attention_factor": 1.5}}),
    "yarn mscale": ("mixtral", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}}),
    "yarn latent": ("deepseek_v3", {"rope_scaling": YARN | MSCALE}),
    "linear": ("qwen3_moe", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "bf16": ("qwen3_moe", {"torch_dtype": "bfloat16"}),
    "f16": ("mixtral", {"torch_dtype": "float16"}),
    "tied qwen2": ("qwen2_moe", {"tie_word_embeddings": True}),
    "tied olmoe": ("olmoe", {"tie_word_embeddings": True}),
    "tied mixtral": ("mixtral", {"tie_word_embeddings": True}),
    "tied deepseek": ("deepseek_v2", {"tie_word_embeddings": True}),
    "one KV head": ("mixtral", {"num_key_value_heads": 1}),
    "wide heads": ("mixtral", {"head_dim": 32}),
    "no qkv bias": ("qwen2_moe", {"qkv_bias": False}),
    "no low-rank query": ("deepseek_v3", {"q_lora_rank": None}),
    "low-rank query": ("deepseek_v2", {"q_lora_rank": 24}),
    "all layers routed": ("deepseek_v2", {"first_k_dense_replace": 0}),
    "wide values": ("deepseek_v3", {"v_head_dim": 32}),
    "lite": ("deepseek_v2", {"num_hidden_layers": 27, "n_routed_experts": 3}),
    "groups": ("deepseek_v3", {"n_group": 4, "topk_group": 2}),
    "greedy ignores groups": ("deepseek_v2", {"n_group": 2, "topk_group": 1}),
    "no renormalisation": ("deepseek_v3", {"norm_topk_prob": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_variants_in_llama_cpp(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    # Mixtral's YaRN in transformers wants head_dim spelled out.
    defaults = {"head_dim": 16} if family == "mixtral" else {}
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, **(defaults | changes)))
    export(ModelSource(checkpoint), tmp_path / "model.gguf")
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(checkpoint.path))


def test_shared_expert_is_padded_to_a_multiple(checkpoint_of: Make, tmp_path: Path) -> None:
    """deepseek2 takes the shared width as a multiple of the routed one: 192 becomes 5 x 40."""
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    plan = random_plan(checkpoint, "uniform")
    widths = {layer: (40,) * len(row) for layer, row in plan.widths.items()}
    retained = {key: kept[:40] for key, kept in (plan.retained or {}).items()}
    narrow = type(plan)(plan.model_type, plan.fingerprint, plan.full_width, widths, retained)
    export(ModelSource(checkpoint, narrow), tmp_path / "model.gguf")
    tensors = opened(tmp_path / "model.gguf")
    assert tensors["blk.1.ffn_up_shexp.weight"].shape.tolist() == [64, 200]
    assert_close(llama_logits(tmp_path / "model.gguf"), torch_logits(checkpoint.path, narrow))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_per_expert_file_holds_the_slices(family: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, torch_dtype=dtype))
    source = ModelSource(checkpoint, random_plan(checkpoint, "ragged"))
    quants = ("F32", "BF16") if dtype == "bfloat16" else ("F32",)
    for quant in quants:
        export(source, tmp_path / "model.gguf", quant)
        stored = opened(tmp_path / "model.gguf")
        for layer, widths in source.config.expert_widths.items():
            for expert in range(len(widths)):
                weights = source.expert(layer, expert)
                for projection in ("gate", "up", "down"):
                    tensor = stored[f"blk.{layer}.ffn_{projection}.{expert}.weight"]
                    found = gguf.dequantize(tensor.data, tensor.tensor_type)
                    assert np.array_equal(found, getattr(weights, projection).float().numpy())


def test_plan_that_cuts_nothing_changes_nothing(checkpoint_of: Make, tmp_path: Path) -> None:
    for family in tiny.FAMILIES:
        checkpoint = Checkpoint(checkpoint_of(family))
        for layout in EXPORTER.layouts:
            export(ModelSource(checkpoint), tmp_path / "dense.gguf", layout=layout)
            whole = ModelSource(checkpoint, random_plan(checkpoint, "whole"))
            export(whole, tmp_path / "whole.gguf", layout=layout)
            dense, again = opened(tmp_path / "dense.gguf"), opened(tmp_path / "whole.gguf")
            assert list(dense) == list(again)
            assert all(np.array_equal(dense[n].data, again[n].data) for n in dense)


def test_stock_llama_cpp_refuses_per_expert_but_reads_its_tokenizer(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    file = tmp_path / "model.gguf"
    manifest = export(ModelSource(checkpoint, random_plan(checkpoint, "ragged")), file)
    assert manifest.layout == "per-expert"
    with pytest.raises(UserError) as caught:
        LlamaCppModel(file)
    assert str(caught.value) == (
        "llama.cpp refuses model.gguf: tensor 'blk.0.ffn_gate_exps.weight' not found\n"
        "try: a merged or padded file: export --layout merged|padded"
    )
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.detokenize(model.tokenize("def f(x): return x")) == "def f(x): return x"


def test_tenp_fields_describe_the_file(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("deepseek_v2"))
    plan = random_plan(checkpoint, "ragged")
    source = ModelSource(checkpoint, plan)
    export(source, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    value = {key: field.contents() for key, field in fields.items() if key.startswith("tenp.")}
    assert value == {
        "tenp.version": 1,
        "tenp.layout": "per-expert",
        "tenp.full_width": 96,
        "tenp.moe_layers": [1, 2],
        "tenp.expert_widths": [w for layer in (1, 2) for w in plan.widths[layer]],
        "tenp.keep_ratio": pytest.approx(plan.keep_ratio),
        "tenp.method": "ragged          ",
        "tenp.plan_digest": plan.digest,
    }
    assert fields["deepseek2.expert_feed_forward_length"].contents() == 96


# -- types -----------------------------------------------------------------------------------------


def test_types_equal_ggufs_own_encoders() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 96, generator=generator) * torch.logspace(-6, 3, 64)[:, None]
    rows[5] = 0
    for name in ("F16", "BF16", "Q8_0"):
        wanted = gguf.quantize(rows.numpy(), gguf.GGMLQuantizationType[name])
        assert bytes(TYPES[name].encode(rows)) == wanted.tobytes()
        assert TYPES[name].nbytes(tuple(rows.shape)) == wanted.nbytes
        assert TYPES[name].ggml_id == gguf.GGMLQuantizationType[name]


def test_q8_0_equals_llama_cpps_quantiser(checkpoint_of: Make, tmp_path: Path) -> None:
    from llama_cpp import llama_cpp as native

    source = ModelSource(Checkpoint(checkpoint_of("qwen2_moe")))
    export(source, tmp_path / "f32.gguf", "F32")
    export(source, tmp_path / "ours.gguf", "Q8_0")
    params = native.llama_model_quantize_default_params()
    params.ftype, params.nthread = 7, 1
    theirs = tmp_path / "theirs.gguf"
    status = native.llama_model_quantize(
        str(tmp_path / "f32.gguf").encode(), str(theirs).encode(), params
    )
    assert status == 0
    ours, wanted = opened(tmp_path / "ours.gguf"), opened(theirs)
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert np.array_equal(ours[name].data.reshape(tensor.data.shape), tensor.data), name


def test_f16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(UserError) as caught:
        TYPES["F16"].encode(torch.tensor([[1.0, -1e5]], dtype=torch.bfloat16))
    assert str(caught.value) == (
        "a weight of 9.984e+04 does not fit into F16 (at most 65504)\n"
        "try: --quant BF16, F32 or Q8_0"
    )


# -- refusals --------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "renormalised": (
        "qwen2_moe",
        {"norm_topk_prob": True},
        "llama.cpp never renormalises the top-k weights of qwen2moe, "
        "this model has norm_topk_prob = true",
    ),
    "not renormalised": (
        "qwen3_moe",
        {"norm_topk_prob": False},
        "llama.cpp always renormalises the top-k weights of qwen3moe, "
        "this model has norm_topk_prob = false",
    ),
    "attention bias": (
        "qwen3_moe",
        {"attention_bias": True},
        "llama.cpp loads no attention biases for qwen3moe",
    ),
    "dense layer": (
        "qwen3_moe",
        {"mlp_only_layers": [1]},
        "layer 1 is dense, and llama.cpp's qwen3moe routes in every layer",
    ),
    "sparse step": (
        "qwen2_moe",
        {"decoder_sparse_step": 2},
        "layer 0, 2 is dense, and llama.cpp's qwen2moe routes in every layer",
    ),
    "group-limited greedy": (
        "deepseek_v2",
        {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
        "it picks expert groups by their best expert (n_group = 2), "
        "llama.cpp by the sum of the best two",
    ),
    "odd heads": (
        "olmoe",
        {"head_dim": 8},
        "llama.cpp's olmoe needs heads x head_dim = hidden_size, this model has 4 x 8 = 32 and 64",
    ),
    "grouped queries": (
        "olmoe",
        {"num_key_value_heads": 2},
        "llama.cpp's olmoe needs as many KV heads as heads, this model has 2 and 4",
    ),
    "taken for Lite": (
        "deepseek_v3",
        {"num_hidden_layers": 27},
        "llama.cpp takes a deepseek2 model of 27 layers for a Lite model, which has no q_lora_rank",
    ),
    "YaRN betas": (
        "qwen2_moe",
        {"rope_parameters": YARN | {"rope_theta": 1e4, "beta_fast": 16}},
        "llama.cpp fixes YaRN's beta_fast and beta_slow of qwen2moe at 32 and 1, "
        "this model has 16 and 1",
    ),
    "unequal mscale": (
        "deepseek_v3",
        {"rope_scaling": YARN | {"mscale": 1.0}},
        "llama.cpp's deepseek2 needs YaRN's mscale and mscale_all_dim to be equal, "
        "this model has 1.0 and None",
    ),
    "linear rope": (
        "deepseek_v2",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "llama.cpp's deepseek2 does not scale its rotary embedding linearly",
    ),
    "no shared expert": (
        "qwen2_moe",
        {"shared_expert_intermediate_size": 0},
        "llama.cpp's qwen2moe needs a shared expert",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    family, changes, reason = REFUSED[case]
    checkpoint = Checkpoint(tiny.make(tmp_path / "model", family, **changes))
    with pytest.raises(UserError) as caught:
        EXPORTER.check(checkpoint.config, ExportOptions("F32"))
    assert str(caught.value) == (
        f"{family} cannot be written as GGUF: {reason}\n"
        "try: run the pruned checkpoint with transformers instead"
    )


def test_options_that_do_not_exist(checkpoint_of: Make) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    ragged = ModelSource(checkpoint, random_plan(checkpoint, "ragged")).config
    for options, text in (
        (
            ExportOptions("Q9"),
            "GGUF has no tensor type 'Q9'\ntry: --quant F32, F16, BF16, Q8_0",
        ),
        (
            ExportOptions("F32", "flat"),
            "GGUF has no layout 'flat'\ntry: --layout per-expert, merged, padded",
        ),
        (
            ExportOptions("F32", "merged"),
            "the merged layout needs one expert width, this model has 3: 32, 40, 96\n"
            "try: --layout per-expert, --layout padded, or plan with --method uniform",
        ),
    ):
        with pytest.raises(UserError) as caught:
            EXPORTER.check(ragged, options)
        assert str(caught.value) == text


# -- runtime ---------------------------------------------------------------------------------------


def test_logits_do_not_depend_on_batches(checkpoint_of: Make, tmp_path: Path) -> None:
    export(ModelSource(Checkpoint(checkpoint_of("mixtral"))), tmp_path / "model.gguf")
    tokens = list(range(1, 60))
    with LlamaCppModel(tmp_path / "model.gguf", context=64, threads=1, kv_type="F32") as model:
        whole = model.logits(tokens)
        assert np.array_equal(model.logits(tokens, first_position=50), whole[50:])
    with LlamaCppModel(
        tmp_path / "model.gguf", context=64, threads=1, kv_type="F32", ubatch=16
    ) as model:
        assert np.abs(model.logits(tokens, first_position=40) - whole[40:]).max() < 1e-4


def test_runtime_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        LlamaCppModel(tmp_path / "none.gguf")
    assert str(caught.value) == (
        f"{tmp_path / 'none.gguf'} does not exist\ntry: the path of a GGUF file"
    )
    (tmp_path / "junk.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(UserError, match=r"^llama\.cpp refuses junk\.gguf: "):
        LlamaCppModel(tmp_path / "junk.gguf")


def test_peak_rss_counts_the_weights(tmp_path: Path) -> None:
    small = Checkpoint(tiny.make(tmp_path / "small", "qwen3_moe", num_hidden_layers=1))
    large = Checkpoint(
        tiny.make(tmp_path / "large", "qwen3_moe", hidden_size=256, moe_intermediate_size=2560)
    )
    peaks, sizes = [], []
    for checkpoint in (small, large):
        file = checkpoint.path / "model.gguf"
        sizes.append(export(ModelSource(checkpoint), file).file_bytes)
        peaks.append(measure_peak_rss(file, context=128, ubatch=32, kv_type="F16", threads=1))
    grown = sizes[1] - sizes[0]
    assert grown > 150 * 2**20
    assert 0.98 * grown < peaks[1] - peaks[0] < 1.1 * grown


def test_exporting_and_running_import_neither_transformers_nor_torch_needlessly() -> None:
    code = (
        "import sys; import tenp_edge.runtime.native as n; n.native(); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "import tenp_edge.exporters.gguf; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    import os

    root = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": root}

"""The per-expert runtime: its numbers against transformers and unmodified llama.cpp."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny
from support.gguf_cases import TOKENS, Logits, assert_close, export, torch_logits
from support.plans import cycled, plan_for
from support.runtime_cases import CheckpointOf, export_ragged, ragged_widths

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml import branches
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.padded_twin import GgufFile, write_padded_twin
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.memory.footprint import KV_TYPES

FileOf = Callable[..., Path]
ONE_PER_ATTENTION = ("qwen3_moe", "deepseek_v3")


def plan_of(checkpoint: Path, tmp_path: Path) -> CompressionPlan:
    return export_ragged(checkpoint, tmp_path / "unused.gguf")


def ours(file: Path, **choices: object) -> Logits:
    """Of TOKENS in our runtime, with F32 KV unless ``choices`` say otherwise."""
    with PerExpertModel(file, **{"context": 128, "threads": 1, "kv_type": "F32"} | choices) as m:
        return m.logits(TOKENS)


def llamacpp(file: Path, **choices: object) -> Logits:
    with LlamaCppModel(file, **{"context": 128, "threads": 1, "kv_type": "F32"} | choices) as m:
        return m.logits(TOKENS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_f32_is_transformers_and_padded_llamacpp(
    family: str, checkpoint_of: CheckpointOf, file_of: FileOf, tmp_path: Path
) -> None:
    plan = plan_of(checkpoint_of(family), tmp_path)
    found = ours(file_of(family))
    assert_close(found, torch_logits(checkpoint_of(family), plan), family)
    assert_close(found, llamacpp(file_of(family, layout="padded")), family)
    assert_close(ours(file_of(family), flash_attention=False), found, family)


_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("mixtral", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "yarn": ("qwen3_moe", {"rope_scaling": {"rope_type": "yarn"} | _YARN}),
    "yarn, own magnitude": (
        "qwen3_moe",
        {"rope_scaling": {"rope_type": "yarn", "attention_factor": 1.3} | _YARN},
    ),
    "no groups, whole queries": (
        "deepseek_v3",
        {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "norm_topk_prob": False},
    ),
    # GLM-4.7-Flash's own: transformers divides latents with another epsilon, 1e-6.
    "published epsilon": ("glm4_moe_lite", {"rms_norm_eps": 1e-5}),
    "low-rank queries": ("deepseek_v2", {"q_lora_rank": 32, "num_hidden_layers": 4}),
    "one head for all": ("mixtral", {"num_key_value_heads": 1}),
    "every expert": ("olmoe", {"num_experts": 3, "num_experts_per_tok": 3}),
    "one expert": ("qwen2_moe", {"num_experts_per_tok": 1}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_transformers_and_padded_llamacpp(name: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    checkpoint = tiny.make(tmp_path / "model", family, **changes)
    plan = export_ragged(checkpoint, tmp_path / "model.gguf")
    export_ragged(checkpoint, tmp_path / "padded.gguf", layout="padded")
    found = ours(tmp_path / "model.gguf")
    assert_close(found, torch_logits(checkpoint, plan))
    assert_close(found, llamacpp(tmp_path / "padded.gguf"))


def assert_same(file: Path, padded: Path, *, exact: bool = True, **choices: object) -> None:
    """Token by token bit for bit: the same kernels on the same numbers, rounded in the same order.
    A prefill may take other tiles, and one rounding more or less moves a quantised activation, so
    there the distributions are compared (mean KL; below 1e-4 is the project's bar)."""
    settings = {"context": 128, "threads": 1} | choices
    with PerExpertModel(file, **settings) as mine, LlamaCppModel(padded, **settings) as theirs:
        assert mean_kl(theirs.logits(TOKENS), mine.logits(TOKENS)) < 1e-4
        for model in (mine, theirs):
            model.reset()
        for token in TOKENS[:16] if exact else ():
            assert np.array_equal(mine.decode(token), theirs.decode(token))


# Experts of one layer whose matrices take rows of different kinds: packed in the quantised types,
# float32 in the others.
MIXES = {
    "one gate": ("Q8_0", (r"blk\.0\.ffn_gate\.1\.=F16",)),
    "gate and up": ("Q8_0", (r"blk\.1\.ffn_(gate|up)\.[02]\.=F16",)),
    "one up": ("Q4_0", (r"blk\.2\.ffn_up\.3\.=BF16",)),
    "one quantised": ("F16", (r"blk\.\d\.ffn_(gate|down)\.1\.=Q8_0",)),
}


@pytest.mark.parametrize("mix", MIXES)
def test_experts_of_different_kinds_run_at_any_length(
    mix: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    quant, rules = MIXES[mix]
    file, twin = tmp_path / "model.gguf", tmp_path / "twin.gguf"
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, ragged_widths(checkpoint))
    options = ExportOptions(quant, "per-expert", tensor_types=rules)
    EXPORTER.write(source, options, file)
    write_padded_twin(GgufFile(file), twin)
    settings = {"context": 512, "threads": 1, "kv_type": "F32"}
    with PerExpertModel(file, **settings) as mine, LlamaCppModel(twin, **settings) as theirs:
        for length in (1, 31, 33, 300):
            tokens = (TOKENS * 4)[:length]
            assert mean_kl(theirs.logits(tokens), mine.logits(tokens)) < 1e-4, length


def mean_kl(reference: Logits, candidate: Logits) -> float:
    p, q = (
        rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        for rows in (reference.astype(np.float64), candidate.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("quant", ["Q8_0", "BF16"])
def test_stored_types_are_padded_llamacpp(family: str, quant: str, file_of: FileOf) -> None:
    """Zero padding changes the order of a sum in the types without blocks."""
    padded, exact = file_of(family, quant, "padded"), quant == "Q8_0"
    assert_same(file_of(family, quant), padded, exact=exact, kv_type="F32", flash_attention=False)


@pytest.mark.parametrize("kv_type", ["F16", "Q8_0"])
@pytest.mark.parametrize(
    "changes",
    [
        ("qwen3_moe", {}),
        ("qwen2_moe", {"hidden_size": 128}),
        ("deepseek_v2", {"qk_rope_head_dim": 32}),
        ("deepseek_v3", {"qk_rope_head_dim": 32}),
        ("gpt_oss", {}),
    ],
    ids=lambda changes: changes[0],
)
def test_caches_are_llamacpps(
    kv_type: str, changes: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    """With flash attention. (llama.cpp rounds an F32 cache to F16 there; ours stays F32.)"""
    checkpoint = tiny.make(tmp_path / "model", changes[0], **changes[1])
    for layout in ("per-expert", "padded"):
        export_ragged(checkpoint, tmp_path / f"{layout}.gguf", "Q8_0", layout)
    file, padded = tmp_path / "per-expert.gguf", tmp_path / "padded.gguf"
    assert_same(file, padded, kv_type=kv_type, flash_attention=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_smaller_caches_are_llamacpps(family: str, file_of: FileOf) -> None:
    """Token by token: in a prefill of random weights another order of sums is felt in them."""
    file, padded = file_of(family, "Q8_0"), file_of(family, "Q8_0", "padded")
    for kv_type in KV_TYPES.keys() - {"F32", "F16", "Q8_0"}:
        settings = {"context": 64, "threads": 1, "kv_type": kv_type, "flash_attention": True}
        with PerExpertModel(file, **settings) as mine, LlamaCppModel(padded, **settings) as theirs:
            for token in TOKENS[:16]:
                assert np.array_equal(mine.decode(token), theirs.decode(token))


# Rows of 256 and more fill K-quants' blocks; two layers of four experts keep it quick.
WIDE = {"hidden_size": 256, "num_hidden_layers": 2}


def wide(directory: Path, family: str, width: int = 512, **more: int) -> Checkpoint:
    config = read_config(tiny.CONFIGS[family], FAMILIES)
    row, keys = config.raw, config.family
    top_k = next(key for key in ("moe_k", "num_experts_per_tok", "top_k_experts") if key in row)
    changes = WIDE | {keys.experts_key: 4, keys.width_key: width, top_k: 2} | more
    if "layer_types" in row:
        changes["layer_types"] = row["layer_types"][: WIDE["num_hidden_layers"]]
    if "hybrid_override_pattern" in row:
        changes |= {"hybrid_override_pattern": "ME*", "num_hidden_layers": 3}
    if "mamba_expand" in row:
        changes["mamba_n_heads"] = 2 * WIDE["hidden_size"] // row["mamba_d_head"]
    return Checkpoint(tiny.make(directory, family, **changes))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_uniform_and_ragged_blocks_are_llamacpps(family: str, tmp_path: Path) -> None:
    """Uniform files against their merged form, ragged against padded: the same types, by token bit
    for bit. A K-quant's down is padded in whole blocks of zeros, which add nothing. Ragged Q8_0 is
    compared by `test_stored_types_are_padded_llamacpp`."""
    checkpoint = wide(tmp_path / "model", family)
    whole = ModelSource(checkpoint)
    ragged = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (256, 512))))
    merged = [(quant, whole, "merged") for quant in ("Q8_0", "Q4_K_M")]
    padded = [(quant, ragged, "padded") for quant in ("Q4_0", "Q4_K_M")]
    for quant, source, twin in (*merged, *padded):
        for layout in ("per-expert", twin):
            export(source, tmp_path / f"{layout}.gguf", quant, layout)
        files = tmp_path / "per-expert.gguf", tmp_path / f"{twin}.gguf"
        assert_same(*files, kv_type="F32", flash_attention=False)


@pytest.mark.parametrize(
    "quant", ["Q6_K", "Q5_K_M", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q3_K_M", "Q2_K"]
)
def test_fallback_types_are_llamacpps(quant: str, tmp_path: Path) -> None:
    """Experts of 96 neurons: down takes the fallback of every mix, in both files the same."""
    checkpoint = wide(tmp_path / "model", "qwen2_moe", 256)
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, (96,))))
    for layout in ("per-expert", "merged"):
        export(source, tmp_path / f"{layout}.gguf", quant, layout)
    files = tmp_path / "per-expert.gguf", tmp_path / "merged.gguf"
    assert_same(*files, kv_type="F32", flash_attention=False)


@pytest.mark.parametrize(
    "kind",
    [
        *("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
        *("MXFP4", "NVFP4", "TQ2_0", "TQ1_0"),
    ],
)
def test_few_bits_are_llamacpps(kind: str, tmp_path: Path) -> None:
    """Experts whose gate and up are in the type and whose down is in another; three of one layer,
    since these types take seconds to encode."""
    few = {"num_hidden_layers": 1, "num_experts": 3}
    source = ModelSource(wide(tmp_path / "model", "qwen3_moe", 256, **few))
    rules = (rf"ffn_(gate|up)_exps={kind}", "ffn_down_exps=Q5_K")
    for layout in ("per-expert", "merged"):
        options = ExportOptions("Q4_0", layout, tensor_types=rules)
        EXPORTER.write(source, options, tmp_path / f"{layout}.gguf")
    files = tmp_path / "per-expert.gguf", tmp_path / "merged.gguf"
    assert_same(*files, kv_type="F32", flash_attention=False)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_ragged_is_padded_in_unmodified_llamacpp(family: str, quant: str, file_of: FileOf) -> None:
    """The project's bar, mean KL below 1e-4 with an F32 cache, in the types of 32-blocks."""
    choices = {"kv_type": "F32", "flash_attention": False}
    ragged = ours(file_of(family, quant), **choices)
    assert mean_kl(llamacpp(file_of(family, quant, "padded"), **choices), ragged) < 1e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_extension_changes_nothing(
    family: str, quant: str, file_of: FileOf, extension: bool
) -> None:
    assert extension, "no C compiler: the extension cannot be tested here"
    rows = []
    for use_extension in (True, False):
        with PerExpertModel(
            file_of(family, quant),
            context=64,
            threads=1,
            kv_type="F32",
            use_extension=use_extension,
        ) as model:
            assert bool(model._model.ragged) == use_extension
            rows.append([model.evaluate(TOKENS[:20]), *map(model.decode, TOKENS[20:30])])
    assert np.abs(np.array(rows[0]) - rows[1]).max() < 1e-4 * np.std(rows[1])


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_threads_change_nothing(quant: str, file_of: FileOf, extension: bool) -> None:
    """Also more threads than cores, and than units of work: nobody waits inside a node."""
    assert extension, "no C compiler: the extension cannot be tested here"
    rows = []
    for threads in range(1, 9):
        choices = {"context": 64, "threads": threads, "kv_type": "F32"}
        with PerExpertModel(file_of("qwen3_moe", quant), **choices) as model:
            rows.append([model.evaluate(TOKENS[:20]), *map(model.decode, TOKENS[20:24])])
    assert all(np.array_equal(found, rows[0]) for found in rows[1:])


@pytest.mark.parametrize("separate", ["as stored", "not side by side"])
@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_gate_and_up_need_not_be_one_product(
    quant: str, separate: str, file_of: FileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefill's shortcuts against its long way: two products, each of which quantises x."""
    whole = ours(file_of("qwen3_moe", quant))
    if separate != "as stored":
        monkeypatch.setattr(branches, "_side_by_side", lambda *_matrices: False)
    monkeypatch.setattr(branches._Inputs, "_kind", lambda *_arguments: ggml.F32)
    assert np.array_equal(ours(file_of("qwen3_moe", quant)), whole)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_batches_and_single_tokens_are_one_prefill(family: str, file_of: FileOf) -> None:
    whole = ours(file_of(family))
    for ubatch in (1, 17, 33, 95):
        assert_close(ours(file_of(family), ubatch=ubatch), whole, family)
    with PerExpertModel(file_of(family), context=128, threads=1, kv_type="F32", ubatch=40) as model:
        assert np.array_equal(model.logits(TOKENS, 60), model.logits(TOKENS)[60:])
        for keep in (0, 50):
            model.reset(keep)
            rows = [model.evaluate(TOKENS[keep:70]), *map(model.decode, TOKENS[70:])]
            assert_close(np.array(rows), whole[69:], family)
            assert model.position == len(TOKENS)
        assert_close(model.prompt(TOKENS[:30]), whole[29], family)
        assert_close(model.prompt([*TOKENS[:20], *TOKENS[20:40]]), whole[39], family)


def test_long_contexts_change_graphs_and_keep_the_numbers(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """The number of cache slots in a graph grows by 256; the compute buffer with it."""
    export_ragged(checkpoint_of("qwen3_moe"), tmp_path / "model.gguf")
    export_ragged(checkpoint_of("qwen3_moe"), tmp_path / "padded.gguf", layout="padded")
    tokens = [(7 * index * index + 3) % 380 for index in range(600)]
    choices = {"context": 600, "threads": 2, "kv_type": "F32"}
    with LlamaCppModel(tmp_path / "padded.gguf", **choices) as judge:
        wanted = judge.logits(tokens, 500)
    with PerExpertModel(tmp_path / "model.gguf", **choices, ubatch=200) as model:
        assert_close(model.logits(tokens, 500), wanted)
        model.prompt(tokens[:510])
        assert_close(np.array([model.decode(token) for token in tokens[510:520]]), wanted[10:20])
        model.reset()
        model.evaluate([5] * 600)
        assert model.memory().compute_bytes == model._allocator.nbytes


def test_a_uniform_per_expert_file_is_its_merged_file(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    source = ModelSource(Checkpoint(checkpoint_of("qwen2_moe")))
    for layout in ("per-expert", "merged"):
        export(source, tmp_path / f"{layout}.gguf", "Q8_0", layout)
    file, merged = tmp_path / "per-expert.gguf", tmp_path / "merged.gguf"
    assert_same(file, merged, kv_type="F16", flash_attention=True)


def test_an_interrupt_leaves_no_graph_in_a_buffer_that_is_gone(
    file_of: FileOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a larger graph gets its memory: the smaller one points into what was freed."""
    with PerExpertModel(file_of("qwen3_moe"), context=128, threads=1, kv_type="F32") as model:
        wanted = model.decode(TOKENS[0])
        place, before = model._allocator.place, model._allocator.nbytes

        def interrupted(graph: int) -> None:
            place(graph)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(model._allocator, "place", interrupted)
            model.evaluate(TOKENS[:64])
        assert model._allocator.nbytes > before and not model._graphs
        model.reset()
        assert np.array_equal(model.decode(TOKENS[0]), wanted)

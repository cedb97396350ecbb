"""The memory table: llama.cpp's KV formula, the compute bound, weights from the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from support import tiny

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.base import ExportOptions, Manifest
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.models import FAMILIES, ModelConfig, read_config
from tenp_edge.planning.memory.table import (
    compute_bytes,
    decode_tokens_per_second,
    expert_bytes,
    kv_bytes,
    memory_table,
)
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.runtime.memory.footprint import KV_TYPES, MemoryRun

QWEN3_30B = tiny.CONFIGS["qwen3_moe"] | {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
DEEPSEEK_V2_LITE = tiny.CONFIGS["deepseek_v2"] | {
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
MIXTRAL = tiny.CONFIGS["mixtral"] | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_local_experts": 8,
    "vocab_size": 32000,
}


def config_of(raw: dict[str, object]) -> ModelConfig:
    return read_config(raw, FAMILIES)


def test_kv_types_are_ggmls() -> None:
    """Their numbers and blocks, by gguf's own table."""
    for name, kind in KV_TYPES.items():
        number = gguf.GGMLQuantizationType[name]
        assert (kind.ggml_id, (kind.block, kind.block_bytes)) == (
            number,
            gguf.GGML_QUANT_SIZES[number],
        )
    assert [KV_TYPES[name].row_bytes(64) for name in ("F32", "F16", "Q8_0")] == [256, 128, 68]
    assert KV_TYPES["Q8_0"].row_bytes(65) == 3 * 34


@pytest.mark.parametrize(
    ("raw", "context", "kv_type", "measured"),
    [
        # llama.cpp's own figures (llama_get_memory_breakdown of a no-alloc model).
        (QWEN3_30B, 4096, "F16", 402653184),
        (QWEN3_30B, 512, "F16", 50331648),
        (QWEN3_30B, 4096, "Q8_0", 213909504),
        (QWEN3_30B, 4096, "F32", 805306368),
        (DEEPSEEK_V2_LITE, 4096, "F16", 127401984),
        (DEEPSEEK_V2_LITE, 4096, "Q8_0", 67682304),
        (MIXTRAL, 32768, "F16", 4294967296),
    ],
)
def test_kv_cache_is_llama_cpp_s_to_the_byte(
    raw: dict[str, object], context: int, kv_type: str, measured: int
) -> None:
    assert kv_bytes(config_of(raw), MemoryRun(context, kv_type=kv_type)) == measured


def test_kv_context_is_padded_to_256_cells() -> None:
    config = config_of(QWEN3_30B)
    assert kv_bytes(config, MemoryRun(1000)) == kv_bytes(config, MemoryRun(1024))


@pytest.mark.parametrize(
    ("raw", "context", "ubatch", "measured"),
    [
        # Compute buffers llama.cpp projects with one output and flash attention.
        (QWEN3_30B, 4096, 512, 96481312),
        (QWEN3_30B, 32768, 512, 125841440),
        (QWEN3_30B, 4096, 32, 6030112),
        (DEEPSEEK_V2_LITE, 4096, 512, 97525792),
        (DEEPSEEK_V2_LITE, 4096, 2048, 390103072),
        (MIXTRAL, 8192, 512, 218116128),
    ],
)
def test_compute_bound_is_never_below_and_close(
    raw: dict[str, object], context: int, ubatch: int, measured: int
) -> None:
    bound = compute_bytes(config_of(raw), MemoryRun(context, ubatch))
    assert measured <= bound <= 1.14 * measured


def manifest_of(checkpoint: Checkpoint, layout: str = "per-expert") -> Manifest:
    return EXPORTER.manifest(checkpoint, checkpoint.config, ExportOptions("F32", layout))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_table_adds_up_to_the_manifest(checkpoint_of: Callable[[str], Path], family: str) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    config, manifest = checkpoint.config, manifest_of(checkpoint)
    table = memory_table(config, manifest, this_machine(), MemoryRun(1024, 256), 10**9)
    assert table.weights_bytes == manifest.weight_bytes
    count = sum(len(row) for row in config.expert_widths.values())
    biases = 2 * config.expert_neurons + count * config.hidden_size
    experts = 4 * config.expert_neurons * config.hidden_size * len(config.family.matrices)
    experts += 4 * biases if config.family.expert_bias else 0
    assert table.experts_bytes == expert_bytes(manifest) == experts
    parts = table.weights_bytes + table.kv_bytes + table.compute_bytes + table.overhead_bytes
    assert table.total_bytes == parts == 10**9 - table.headroom_bytes


def test_speed_by_hand(checkpoint_of: Callable[[str], Path]) -> None:
    """Untied Qwen2: 3 of 6 experts, everything else but the embedding table, and the cache."""
    checkpoint = Checkpoint(checkpoint_of("qwen2_moe"))
    config, manifest = checkpoint.config, manifest_of(checkpoint)
    profile = replace(this_machine(), memory_bandwidth_bytes_per_second=10**9)
    experts = expert_bytes(manifest)
    table = config.vocab_size * config.hidden_size * 4
    touched = (
        experts / 2 + manifest.weight_bytes - experts - table + kv_bytes(config, MemoryRun(256))
    )
    speed = decode_tokens_per_second(config, manifest, profile, MemoryRun(256))
    step = 100e-6 + config.num_hidden_layers * 10e-6
    assert speed == pytest.approx(1 / (touched / 1e9 + step))
    busier = decode_tokens_per_second(config, manifest, profile, MemoryRun(256), 1.2)
    assert busier == pytest.approx(1 / ((touched + 0.1 * experts) / 1e9 + step))
    boundless = replace(profile, memory_bandwidth_bytes_per_second=10**15, threads=2)
    weights = (touched - kv_bytes(config, MemoryRun(256))) / 4
    speed = decode_tokens_per_second(config, manifest, boundless, MemoryRun(256))
    assert speed == pytest.approx(1 / (weights / 100e9 + step), rel=1e-3)

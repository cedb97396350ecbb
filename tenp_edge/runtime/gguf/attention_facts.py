"""What a file says of attention: latent sizes; window, heads and rotation of every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.runtime.gguf.metadata_reader import Fields
from tenp_edge.runtime.gguf.rope_facts import Rope
from tenp_edge.runtime.gguf.runnable_architectures import Architecture

_WINDOW = "attention.sliding_window"


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: the cache holds ``kv_rank`` + rope values per token."""

    q_rank: int
    kv_rank: int
    nope: int
    value: int


def read_mla(fields: Fields) -> Mla:
    """The sizes of latent attention."""
    rope = fields.integer("rope.dimension_count")
    key, rank = fields.integer("attention.key_length_mla"), fields.integer("attention.kv_lora_rank")
    value = fields.integer("attention.value_length", rank)
    if key <= rope or fields.integer("attention.key_length") != rank + rope or value != rank:
        raise fields.error("its latent attention sizes contradict each other")
    return Mla(
        q_rank=fields.integer("attention.q_lora_rank", 0),
        kv_rank=rank,
        nope=key - rope,
        value=fields.integer("attention.value_length_mla"),
    )


def layer_windows(fields: Fields, row: Architecture, layers: int) -> list[int | None]:
    """The window of each layer: llama.cpp's period, every so many layers one looks at all."""
    period = row.window_period
    if not period:
        return [None] * layers
    window = fields.integer(_WINDOW)
    return [window if (layer + 1) % period else None for layer in range(layers)]


def attention_by_layer(
    fields: Fields, full: LayerAttention, rope: Rope, layers: int
) -> tuple[tuple[LayerAttention, ...], tuple[Rope, ...]]:
    """Attention and rotation of every layer: ``full`` and ``rope``, or, of a window, the _swa keys.

    Keys that llama.cpp has and we never use must say so.
    """
    for key in ("attention.shared_kv_layers", "embedding_length_per_layer_input"):
        if fields.integer(key, 0):
            raise fields.error(f"{key} is not 0")
    head_dim, window = fields.integer("attention.key_length_swa"), fields.integer(_WINDOW)
    turning = Rope(fields.integer("rope.dimension_count_swa"), fields.real("rope.freq_base_swa"))
    if fields.integer("attention.value_length_swa") != head_dim or turning.dimensions != head_dim:
        raise fields.error("its attention heads contradict each other")
    within = fields.flags("attention.sliding_window_pattern")
    kv_heads = fields.integers("attention.head_count_kv")
    if len(within) != layers or len(kv_heads) != layers:
        raise fields.error(f"{len(within)} windows and {len(kv_heads)} KV heads, {layers} layers")
    if not all(0 < count <= full.heads and full.heads % count == 0 for count in kv_heads):
        raise fields.error("its attention heads contradict each other")
    attention = []
    for layer, (inside, count) in enumerate(zip(within, kv_heads, strict=True)):
        own_values = f"blk.{layer}.attn_v.weight" in fields.header.tensors
        size, seen = (head_dim, window) if inside else (full.head_dim, None)
        attention.append(LayerAttention(full.heads, count, size, seen, own_values=own_values))
    return tuple(attention), tuple(turning if inside else rope for inside in within)


def attention_scale(fields: Fields, row: Architecture, rope: Rope, query_dim: int) -> float:
    """1 / sqrt(head size), times (0.1 mscale_all_dim ln(factor) + 1)^2 in deepseek2."""
    own = fields.real("attention.scale", 0.0) if row.multipliers else row.attention_scale
    scale = own or 1.0 / math.sqrt(query_dim)
    if not row.mla:
        return scale
    spread = math.log(1.0 / rope.scale)
    original = rope.attention_factor * (1.0 + 0.1 * spread)
    # The file holds 0.1 mscale_all_dim.
    multiplier = fields.real("rope.scaling.yarn_log_multiplier", 0.0)
    magnitude = original * (1.0 + multiplier * spread)
    return scale * magnitude * magnitude

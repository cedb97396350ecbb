"""The KV cache as inputs and outputs: past_key_values.N.key/value -> present.N.key/value.

Float32, (batch, heads, tokens, size). MLA's cache holds keys and values expanded, the values padded
to the keys' size (onnxruntime-genai allocates both alike), or on demand the latent: "key" is then
the normalised latent (1 head of kv_lora_rank), "value" the rotated key (1 head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT, Dims, GraphBuilder
from tenp_edge.models import MLA, LayerAttention, ModelConfig

BYTES = 4


@dataclass(frozen=True)
class CacheShape:
    """Heads of one layer's cache and the size of a key and of a value."""

    heads: int
    key_size: int
    value_size: int

    @property
    def bytes_per_token(self) -> int:
        return BYTES * self.heads * (self.key_size + self.value_size)


def cache_shapes(
    config: ModelConfig, latent: bool = False, pads_values: bool = True
) -> tuple[CacheShape, ...]:
    """Of every layer. A layer of a window caches all tokens too, and masks what it does not see:
    callers give every layer a cache of one length."""
    return tuple(
        _cache_shape(config.mla, config.layer_attention(layer), latent, pads_values)
        for layer in range(config.num_hidden_layers)
    )


def _cache_shape(mla: MLA | None, own: LayerAttention, latent: bool, pads: bool) -> CacheShape:
    if mla is None:
        return CacheShape(own.kv_heads, own.head_dim, own.head_dim)
    if latent:
        return CacheShape(1, mla.kv_lora_rank, mla.qk_rope_head_dim)
    values = max(own.head_dim, mla.v_head_dim) if pads else mla.v_head_dim
    return CacheShape(own.heads, own.head_dim, values)


def cache_dims(shape: CacheShape, batch: int | str, tokens: int | str) -> tuple[Dims, Dims]:
    """Dimensions of one layer's keys and values."""
    return (
        (batch, shape.heads, tokens, shape.key_size),
        (batch, shape.heads, tokens, shape.value_size),
    )


def past_inputs(
    g: GraphBuilder, shapes: Sequence[CacheShape], batch: int | str, tokens: int | str
) -> tuple[tuple[ir.Value, ir.Value], ...]:
    """The cache of every layer as inputs of the graph."""
    dims = [cache_dims(shape, batch, tokens) for shape in shapes]
    return tuple(
        (
            g.input(f"past_key_values.{layer}.key", FLOAT, key_dims),
            g.input(f"past_key_values.{layer}.value", FLOAT, value_dims),
        )
        for layer, (key_dims, value_dims) in enumerate(dims)
    )

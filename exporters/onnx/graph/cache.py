"""The KV cache as inputs and outputs: past_key_values.N.key/value -> present.N.key/value.

Float32, (batch, heads, tokens, size). MLA's cache holds keys and values expanded, the values padded
to the keys' size (onnxruntime-genai allocates both alike), or on demand the latent: "key" is then
the normalised latent (1 head of kv_lora_rank), "value" the rotated key (1 head).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT, Dims, GraphBuilder
from tenp_edge.models import ModelConfig

BYTES = 4


@dataclass(frozen=True)
class CacheShape:
    """Heads of one layer's cache and the size of a key and of a value."""

    heads: int
    key_size: int
    value_size: int

    def bytes_per_token(self, layers: int) -> int:
        return BYTES * layers * self.heads * (self.key_size + self.value_size)


def cache_shape(config: ModelConfig, latent: bool = False, pads_values: bool = True) -> CacheShape:
    mla = config.mla
    if mla is None:
        return CacheShape(config.num_key_value_heads, config.head_dim, config.head_dim)
    if latent:
        return CacheShape(1, mla.kv_lora_rank, mla.qk_rope_head_dim)
    values = max(config.head_dim, mla.v_head_dim) if pads_values else mla.v_head_dim
    return CacheShape(config.num_attention_heads, config.head_dim, values)


def cache_dims(
    shape: CacheShape, batch: int | str, tokens: int | str
) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Dimensions of one layer's keys and values."""
    return (
        (batch, shape.heads, tokens, shape.key_size),
        (batch, shape.heads, tokens, shape.value_size),
    )


def past_inputs(
    g: GraphBuilder, config: ModelConfig, key_dims: Dims, value_dims: Dims
) -> tuple[tuple[ir.Value, ir.Value], ...]:
    """The cache of every layer as inputs of the graph."""
    return tuple(
        (
            g.input(f"past_key_values.{layer}.key", FLOAT, key_dims),
            g.input(f"past_key_values.{layer}.value", FLOAT, value_dims),
        )
        for layer in range(config.num_hidden_layers)
    )

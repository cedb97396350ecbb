"""The KV cache as inputs and outputs: past_key_values.N.key/value -> present.N.key/value, and the
states of layers that carry one: past_state.N.NAME -> present_state.N.NAME.

Float32, (batch, heads, tokens, size). MLA's cache holds keys and values expanded, the values padded
to the keys' size (onnxruntime-genai allocates both alike), or on demand the latent: "key" is then
the normalised latent (1 head of kv_lora_rank), "value" the rotated key (1 head). A state is
float32, (batch, ...) with its shape from the outermost dimension on, whatever came before; zeros
before the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
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
) -> dict[int, CacheShape]:
    """Of every layer that attends. A layer of a window caches all tokens too, and masks what it
    does not see: callers give every layer a cache of one length."""
    return {
        layer: _cache_shape(config.mla, own, latent, pads_values)
        for layer, own in config.attention_by_layer.items()
    }


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
    g: GraphBuilder, shapes: Mapping[int, CacheShape], batch: int | str, tokens: int | str
) -> dict[int, tuple[ir.Value, ir.Value]]:
    """The cache of every layer as inputs of the graph."""
    dims = {layer: cache_dims(shape, batch, tokens) for layer, shape in shapes.items()}
    return {
        layer: (
            g.input(f"past_key_values.{layer}.key", FLOAT, key_dims),
            g.input(f"past_key_values.{layer}.value", FLOAT, value_dims),
        )
        for layer, (key_dims, value_dims) in dims.items()
    }


def state_dims(config: ModelConfig, batch: int | str) -> dict[int, dict[str, Dims]]:
    """Dimensions of the states, by layer and name."""
    return {
        layer: {name: (batch, *shape[::-1]) for name, shape in mixer.state_shapes.items()}
        for layer, mixer in enumerate(config.mixers)
        if mixer is not None and mixer.state_shapes
    }


def state_inputs(
    g: GraphBuilder, dims: Mapping[int, Mapping[str, Dims]]
) -> dict[int, dict[str, ir.Value]]:
    """The states as inputs of the graph."""
    return {
        layer: {
            name: g.input(f"past_state.{layer}.{name}", FLOAT, size) for name, size in sizes.items()
        }
        for layer, sizes in dims.items()
    }

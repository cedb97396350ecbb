"""The mixing block of a layer, by its kind: attention, or one that carries a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.attention import grouped_query
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.delta_net import delta_net
from tenp_edge.exporters.onnx.graph.mla import latent_attention
from tenp_edge.exporters.onnx.graph.short_convolution import short_convolution
from tenp_edge.models import DeltaNet, LayerAttention, ModelConfig, ShortConvolution


def _attention(c: Context, path: str, x: ir.Value, layer: int, _own: LayerAttention) -> ir.Value:
    build = grouped_query if c.config.mla is None else latent_attention
    return build(c, path, x, layer)


# Kind -> (name in paths, maker).
_BUILDERS: dict[type, tuple[str, Callable[[Context, str, ir.Value, int, Any], ir.Value]]] = {
    LayerAttention: ("attn", _attention),
    ShortConvolution: ("conv", short_convolution),
    DeltaNet: ("delta_net", delta_net),
}


def unknown_mixers(config: ModelConfig) -> list[str]:
    """Kinds of blocks of ``config`` that have no graph."""
    kinds = {type(mixer) for mixer in config.mixers if mixer is not None}
    return sorted(kind.__name__ for kind in kinds - _BUILDERS.keys())


def build_mixer(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """What ``layer``, which has such a block, makes of ``x``, the normalised stream (batch, query,
    hidden)."""
    own = c.config.mixers[layer]
    name, build = _BUILDERS[type(own)]
    return build(c, f"{path}/{name}", x, layer, own)

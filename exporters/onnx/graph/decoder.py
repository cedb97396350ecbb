"""The whole decoder.

input_ids ── embedding ──┬── norm ── attention ── Add ──┬── norm ── MoE | MLP ── Add ── ... ──
                         └────────────────────────┘     └──────────────────────┘
── norm ── output ── logits
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.attention import grouped_query
from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.graph.cache import cache_shapes
from tenp_edge.exporters.onnx.graph.context import Context, Makers
from tenp_edge.exporters.onnx.graph.inputs import Lengths, make_inputs
from tenp_edge.exporters.onnx.graph.mla import latent_attention
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp
from tenp_edge.exporters.onnx.graph.moe import moe
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import ModelConfig

_ATTENTION: dict[str, Callable[[Context, str, ir.Value, int], ir.Value]] = {
    "gqa": grouped_query,
    "mla": latent_attention,
}


def build_decoder(
    g: GraphBuilder,
    config: ModelConfig,
    makers: Makers,
    lengths: Lengths,
    latent: bool = False,
) -> None:
    """Everything from input_ids to logits and present, into ``g``."""
    c = Context(g, config, makers, latent)
    caches = cache_shapes(config, latent, makers.pads_values)
    ids, c.run = make_inputs(g, config, caches, lengths, makers)
    embedding = plain_weight(g, c.spec("embed"))
    x = g.op("/model/embed_tokens", "Gather", [embedding, ids], axis=0)
    for layer in range(config.num_hidden_layers):
        x = _layer(c, f"/model/layers.{layer}", x, layer)
    x = c.norm("/model/norm", x, "norm", None, config.rms_norm_eps)
    logits = _output(c, "/lm_head", x, embedding)
    g.output(logits, "logits", FLOAT, [lengths.batch, lengths.query, config.vocab_size])
    c.finish()


def _layer(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    epsilon = c.config.rms_norm_eps
    attention = _ATTENTION[c.config.family.attention]
    normed = c.norm(f"{path}/input_norm", x, "input_norm", layer, epsilon)
    mixed = attention(c, f"{path}/attn", normed, layer)
    x = c.g.op(f"{path}/attn_residual", "Add", [x, mixed])
    normed = c.norm(f"{path}/post_attention_norm", x, "post_attention_norm", layer, epsilon)
    if layer in c.config.expert_widths:
        out = moe(c, f"{path}/moe", normed, layer)
    else:
        out = gated_mlp(c, f"{path}/mlp", normed, "mlp", layer)
    return c.g.op(f"{path}/residual", "Add", [x, out])


def _output(c: Context, path: str, x: ir.Value, embedding: ir.Value) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, vocabulary).

    A tied output multiplies by the embedding table itself, which Gemm reads transposed.
    """
    if c.has("output"):
        return c.makers.linear(c.g, path, x, c.spec("output"))
    if not c.makers.shares_embedding:
        return c.makers.linear(c.g, path, x, c.spec("embed"))
    g, config = c.g, c.config
    rows = g.op(f"{path}/rows", "Reshape", [x, [-1, config.hidden_size]])
    logits = g.op(path, "Gemm", [rows, embedding], transB=1)
    return g.op(f"{path}/out", "Reshape", [logits, c.run.shape])

"""The whole decoder.

input_ids ── embedding ──┬── norm ── attention ── Add ──┬── feed forward ── Add ── ... ──
                         └────────────────────────┘     └───────────────────┘
── norm ── output ── logits

In place of attention a layer may have a block that carries a state, or none; and no feed forward.
The feed forward is norm ── MoE | MLP, or both beside each other, each between norms of its own.
Families that have more norms and scales put them where the comments say.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.graph.cache import cache_shapes
from tenp_edge.exporters.onnx.graph.context import Context, Makers
from tenp_edge.exporters.onnx.graph.inputs import Lengths, make_inputs
from tenp_edge.exporters.onnx.graph.mixers import build_mixer
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp
from tenp_edge.exporters.onnx.graph.moe import moe
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import ModelConfig


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
    x = makers.linear.looked_up(g, "/model/embed_tokens", ids, c.spec("embed"))
    if config.family.embedding_scale:
        root = np.asarray(config.hidden_size**0.5, np.float32)
        x = g.op("/model/embed_tokens/scaled", "Mul", [x, root])
    for layer in range(config.num_hidden_layers):
        x = _layer(c, f"/model/layers.{layer}", x, layer)
    x = c.norm("/model/norm", x, "norm", None, config.rms_norm_eps)
    logits = _bounded(c, "/lm_head/bound", _output(c, "/lm_head", x))
    g.output(logits, "logits", FLOAT, [lengths.batch, lengths.query, config.vocab_size])
    c.finish()


def _layer(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    if c.config.mixers[layer] is not None:
        mixed = build_mixer(c, path, _norm(c, path, x, "input_norm", layer), layer)
        mixed = _norm(c, path, mixed, "attention_out_norm", layer)
        x = c.g.op(f"{path}/attn_residual", "Add", [x, mixed])
    if layer in c.config.expert_widths or layer in c.config.mlp_layers:
        out = _norm(c, path, _feed_forward(c, path, x, layer), "block_out_norm", layer)
        x = c.g.op(f"{path}/residual", "Add", [x, out])
    if not c.has("layer_scale", layer):
        return x
    return c.g.op(f"{path}/scaled", "Mul", [x, plain_weight(c.g, c.spec("layer_scale", layer))])


def _feed_forward(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """Of the residual stream ``x``, before it is added to it.

    x ──┬── norm ── MLP ── norm ─────────────────────┐
        ├── norm ── experts ── norm ──────────────── Add ──
        └── router
    """
    normed = _norm(c, path, x, "post_attention_norm", layer)
    if layer not in c.config.expert_widths:
        return gated_mlp(c, f"{path}/mlp", normed, "mlp", layer)
    if not c.config.family.dense_beside:
        return moe(c, f"{path}/moe", normed, x, layer)
    dense = gated_mlp(c, f"{path}/mlp", normed, "mlp", layer)
    dense = _norm(c, path, dense, "mlp_out_norm", layer)
    routed = moe(c, f"{path}/moe", _norm(c, path, x, "routed_norm", layer), x, layer)
    routed = _norm(c, path, routed, "routed_out_norm", layer)
    return c.g.op(f"{path}/feed_forward", "Add", [dense, routed])


def _norm(c: Context, path: str, x: ir.Value, role: str, layer: int) -> ir.Value:
    """The layer's norm ``role``; ``x`` itself where the family has none."""
    if not c.has(role, layer):
        return x
    return c.norm(f"{path}/{role}", x, role, layer, c.config.rms_norm_eps)


def _bounded(c: Context, path: str, logits: ir.Value) -> ir.Value:
    """Logits within the family's bound, where it has one."""
    if c.config.logit_softcap is None:
        return logits
    bound = np.asarray(c.config.logit_softcap, np.float32)
    share = c.g.op(path, "Tanh", [c.g.op(path, "Div", [logits, bound])])
    return c.g.op(path, "Mul", [share, bound])


def _output(c: Context, path: str, x: ir.Value) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, vocabulary).

    A tied output multiplies by the embedding table itself, which Gemm reads transposed.
    """
    if c.has("output"):
        return c.makers.linear(c.g, path, x, c.spec("output"))
    table = c.spec("embed")
    if not c.makers.linear.shares(table):
        return c.makers.linear(c.g, path, x, table)
    g, config = c.g, c.config
    rows = g.op(f"{path}/rows", "Reshape", [x, [-1, config.hidden_size]])
    logits = g.op(path, "Gemm", [rows, plain_weight(g, table)], transB=1)
    return g.op(f"{path}/out", "Reshape", [logits, c.run.shape])

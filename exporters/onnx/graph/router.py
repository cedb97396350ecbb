"""The router: which experts a token goes to, and with what weights.

    x ── MatMul ── Softmax | Sigmoid ──┬── (+ bias) ── (best groups) ── TopK ── ids
                                       └── weights of the ids ── (renormalise) ── (scales)
    x ── MatMul ── (Add bias) ── TopK ──┬── ids
                                        └── Softmax of the chosen

As transformers computes it. A group's score is its best expert (deepseek_v2) or the sum of its
best two (deepseek_v3). Router weights are never quantised.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import ModelConfig


def chosen_experts(c: Context, path: str, x: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """``x`` (tokens, hidden) -> ids int64 and weights float32, both (tokens, top_k)."""
    g, config, family = c.g, c.config, c.config.family
    bias = c.spec("router_linear_bias", layer) if family.router_linear_bias else None
    logits = c.makers.router(g, path, x, c.spec("router", layer), bias)
    top_k = [config.num_experts_per_tok]
    if family.router_score == "softmax of the chosen":
        best, ids = g.ops(path, "TopK", [logits, top_k], 2, axis=-1, largest=1, sorted=1)
        return ids, g.op(f"{path}/weights", "Softmax", [best], axis=-1)
    if family.router_score == "softmax":
        scores = g.op(path, "Softmax", [logits], axis=-1)
    else:
        scores = g.op(path, "Sigmoid", [logits])
    selection = scores
    if family.router_bias:
        operand = plain_weight(g, c.spec("router_bias", layer))
        selection = g.op(f"{path}/bias", "Add", [scores, operand])
    if expert_groups(config) > 1:
        selection = _best_groups(c, f"{path}/groups", selection)
    weights, ids = g.ops(path, "TopK", [selection, top_k], 2, axis=-1, largest=1, sorted=1)
    if selection is not scores:
        weights = g.op(f"{path}/weights", "GatherElements", [scores, ids], axis=1)
    weights = _normalised(c, f"{path}/weights", weights)
    if c.has("routed_scale", layer):
        scales = plain_weight(g, c.spec("routed_scale", layer))
        operand = g.op(f"{path}/scales", "Gather", [scales, ids], axis=0)
        weights = g.op(f"{path}/scaled", "Mul", [weights, operand])
    return ids, weights


def expert_groups(config: ModelConfig) -> int:
    """Groups the router really chooses by: DeepSeek-V2's "greedy" ignores n_group."""
    greedy = config.raw.get("topk_method", "greedy") == "greedy"
    return 1 if greedy and config.family.router_score == "softmax" else config.n_group


def _normalised(c: Context, path: str, weights: ir.Value) -> ir.Value:
    g, config = c.g, c.config
    if config.norm_topk_prob:
        total = g.op(path, "ReduceSum", [weights, [1]], keepdims=1)
        if config.family.router_score == "sigmoid":
            offset = np.asarray(config.family.router_sum_offset, np.float32)
            total = g.op(f"{path}/total", "Add", [total, offset])
        weights = g.op(path, "Div", [weights, total])
    if config.routed_scaling_factor != 1.0:
        factor = np.asarray(config.routed_scaling_factor, np.float32)
        weights = g.op(path, "Mul", [weights, factor])
    return weights


def _best_groups(c: Context, path: str, scores: ir.Value) -> ir.Value:
    """``scores`` (tokens, experts) with -inf outside the best groups.

    scores ── Reshape (tokens, groups, size) ──┬─────────────────────────── Where ── Reshape ──
                                               └── score ── TopK ── is chosen ─┘
    """
    g, config = c.g, c.config
    groups = config.n_group
    shape = [-1, groups, config.num_experts // groups]
    grouped = g.op(path, "Reshape", [scores, shape])
    score = _group_score(c, f"{path}/score", grouped)
    _, best = g.ops(path, "TopK", [score, [config.topk_group]], 2, axis=-1, largest=1, sorted=0)
    column = g.op(f"{path}/best", "Unsqueeze", [best, [-1]])  # (tokens, chosen, 1)
    hits = g.op(f"{path}/best", "Equal", [column, list(range(groups))])
    hits = g.op(f"{path}/best", "Cast", [hits], to=FLOAT)
    hit = g.op(f"{path}/best", "ReduceMax", [hits, [1]], keepdims=0)  # (tokens, groups)
    mask = g.op(f"{path}/mask", "Cast", [hit], to=ir.DataType.BOOL)
    mask = g.op(f"{path}/mask", "Unsqueeze", [mask, [-1]])
    kept = g.op(path, "Where", [mask, grouped, np.asarray(-np.inf, np.float32)])
    return g.op(f"{path}/flat", "Reshape", [kept, [-1, config.num_experts]])


def _group_score(c: Context, path: str, grouped: ir.Value) -> ir.Value:
    """(tokens, groups, size) -> (tokens, groups)."""
    if c.config.family.router_score == "softmax":
        return c.g.op(path, "ReduceMax", [grouped, [2]], keepdims=0)
    best, _ = c.g.ops(path, "TopK", [grouped, [2]], 2, axis=-1, largest=1, sorted=0)
    return c.g.op(path, "ReduceSum", [best, [2]], keepdims=0)

"""The router: which experts a token goes to, and with what weights.

    logits -> softmax | sigmoid -> (+ bias, best groups) -> top-k ids
                               \\-> weights of the chosen -> (renormalise) -> (scale)
    logits -> top-k ids
          \\-> softmax of the chosen

As llama.cpp's build_moe_ffn; a group's score is the sum of its best two experts.
"""

from __future__ import annotations

import math

from tenp_edge.runtime.ggml.bindings import Context
from tenp_edge.runtime.gguf.model_metadata import Facts

# The smallest normal F16: llama.cpp keeps the divisor above it.
_LEAST_SUM = 6.103515625e-5


def build_router(
    context: Context, facts: Facts, logits: int, bias: int | None, tokens: int
) -> tuple[int, int]:
    """``logits`` (experts, tokens) -> ids (top_k, tokens) int32, weights (top_k, tokens)."""
    if facts.architecture.chosen_softmax:
        return _chosen_softmax(context, facts, logits, tokens)
    scores = context.sigmoid(logits) if facts.sigmoid else context.soft_max(logits)
    selection = scores if bias is None else context.add(scores, bias)
    if facts.groups > 1:
        selection = _best_groups(context, facts, selection, tokens)
    ids = context.argsort_top_k(selection, facts.top_k)
    weights = _of_chosen(context, facts, scores, ids, tokens)
    if facts.norm_topk:
        total = context.clamp(context.sum_rows(weights), _LEAST_SUM, math.inf)
        weights = context.div(weights, total)
    if facts.weights_scale not in (0.0, 1.0):
        weights = context.scale(weights, facts.weights_scale)
    return ids, weights


def residual_input(context: Context, facts: Facts, x: int, scale: int) -> int:
    """What a router of the stream ``x`` (hidden, tokens) multiplies; ``scale`` (hidden)."""
    smaller = context.scale(context.rms_norm(x, facts.eps), 1.0 / math.sqrt(facts.hidden))
    return context.mul(smaller, scale)


def _chosen_softmax(context: Context, facts: Facts, logits: int, tokens: int) -> tuple[int, int]:
    ids = context.argsort_top_k(logits, facts.top_k)
    return ids, context.soft_max(_of_chosen(context, facts, logits, ids, tokens))


def _of_chosen(context: Context, facts: Facts, scores: int, ids: int, tokens: int) -> int:
    """``scores`` (experts, tokens) of the chosen, (top_k, tokens)."""
    by_expert = context.reshape_3d(scores, 1, facts.experts, tokens)
    return context.reshape_2d(context.get_rows(by_expert, ids), facts.top_k, tokens)


def _best_groups(context: Context, facts: Facts, selection: int, tokens: int) -> int:
    """``selection`` (experts, tokens) with -inf outside the best groups."""
    groups, size = facts.groups, facts.experts // facts.groups
    grouped = context.reshape_3d(selection, size, groups, tokens)
    best_two = context.get_rows(
        context.reshape_4d(selection, 1, size, groups, tokens), context.argsort_top_k(grouped, 2)
    )
    scores = context.sum_rows(context.reshape_3d(best_two, 2, groups, tokens))
    chosen = context.argsort_top_k(context.reshape_2d(scores, groups, tokens), facts.groups_used)
    kept = context.get_rows(grouped, chosen)
    masked = context.set_rows(context.fill(grouped, -math.inf), kept, chosen)
    return context.reshape_2d(masked, facts.experts, tokens)

"""Attention over the KV cache: grouped queries, or the latent form of deepseek2.

    x -> q, k, v (+ bias, norms, rotation) -> k, v into their cache slots; v may be k's product
      -> softmax(q k^T scale + mask) v over the slots of its sequence (times sigmoid of a gate)
      -> output matrix

Sizes in comments are as ggml counts, row length first.
"""

from __future__ import annotations

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.step import PartStep, Step
from tenp_edge.runtime.gguf.attention_facts import Mla


def build_attention(step: Step, layer: int, own: LayerAttention, x: int) -> int:
    """``x`` (hidden, tokens), normed -> (hidden, tokens) before the residual sum."""
    mla = step.facts.mla
    mixed = _grouped(step, layer, own, x) if mla is None else _latent(step, mla, layer, own, x)
    return step.linear(layer, "attn_output", mixed)


def _grouped(step: Step, layer: int, attention: LayerAttention, x: int) -> int:
    context, facts, tokens = step.context, step.facts, step.tokens
    size, heads, kv_heads = attention.head_dim, attention.heads, attention.kv_heads
    q, k = (step.linear(layer, f"attn_{name}", x) for name in "qk")
    v = step.linear(layer, "attn_v", x) if attention.own_values else k
    by_row, by_head = (facts.architecture.qk_norm == kind for kind in ("row", "head"))
    if by_row:
        q, k = step.norm(layer, "attn_q_norm", q), step.norm(layer, "attn_k_norm", k)
    q, gate = _gate_apart(step, q, size, heads)
    k = context.reshape_3d(k, size, kv_heads, tokens)
    if by_head:
        q, k = step.norm_if_any(layer, "attn_q_norm", q), step.norm_if_any(layer, "attn_k_norm", k)
    if facts.architecture.value_norm:
        by_size = context.reshape_3d(v, size, kv_heads, tokens)
        v = context.reshape_2d(context.rms_norm(by_size, facts.eps), size * kv_heads, tokens)
    if facts.architecture.rope is not None:
        q, k = _rotate(step, layer, q), _rotate(step, layer, k)
    keys, values = step.cache.layers[layer]
    _store(step, layer, keys, context.reshape_2d(k, size * kv_heads, tokens))
    _store(step, layer, values, v)

    def attended(part: PartStep, q: int) -> int:
        seen = (_heads_of(step, part, layer, held, size, kv_heads) for held in (keys, values))
        mixed = _attend(step, part, layer, context.permute(q, 0, 2, 1, 3), *seen)
        return context.reshape_2d(mixed, size * heads, part.tokens)

    mixed = step.each(attended, q)
    return mixed if gate is None else context.mul(mixed, context.sigmoid(gate))


def _gate_apart(step: Step, q: int, size: int, heads: int) -> tuple[int, int | None]:
    """Queries (size, heads, tokens), and the gate (size heads, tokens) that an architecture has
    behind each head's: (query gate) heads."""
    context, tokens = step.context, step.tokens
    if not step.facts.architecture.attention_gate:
        return context.reshape_3d(q, size, heads, tokens), None
    head = 2 * 4 * size
    queries, gate = (
        context.view_3d(q, size, heads, tokens, head, head * heads, start)
        for start in (0, head // 2)
    )
    return queries, context.reshape_2d(context.cont(gate), size * heads, tokens)


def _latent(step: Step, mla: Mla, layer: int, attention: LayerAttention, x: int) -> int:
    """Queries are multiplied into the latent space (k_b), so that all heads share one cache row."""
    context, facts, tokens = step.context, step.facts, step.tokens
    heads, rope, rank = attention.heads, facts.rope.dimensions, mla.kv_rank
    row = 4 * (mla.nope + rope)
    q = _queries(step, mla, layer, x)
    q_nope = context.view_3d(q, mla.nope, heads, tokens, row, row * heads, 0)
    turned = context.view_3d(q, rope, heads, tokens, row, row * heads, 4 * mla.nope)
    q_rope = _rotate(step, layer, turned)

    both, width = step.linear(layer, "attn_kv_a_mqa", x), 4 * (rank + rope)
    latent = context.view_2d(both, rank, tokens, width, 0)
    k_rope = _rotate(step, layer, context.view_3d(both, rope, 1, tokens, width, width, 4 * rank))
    latent = step.norm(layer, "attn_kv_a_norm", latent)
    k = context.concat(context.reshape_3d(latent, rank, 1, tokens), k_rope, 0)
    (cache,) = step.cache.layers[layer]
    _store(step, layer, cache, context.reshape_2d(k, rank + rope, tokens))

    def attended(part: PartStep, q_nope: int, q_rope: int) -> int:
        # (nope, tokens, heads) -> (rank, tokens, heads) -> (rank, heads, tokens)
        absorbed = context.mul_mat(
            step.weight(layer, "attn_k_b.weight"), context.permute(q_nope, 0, 2, 1, 3)
        )
        q = context.concat(context.permute(absorbed, 0, 2, 1, 3), q_rope, 0)
        seen = (_heads_of(step, part, layer, cache, size, 1) for size in (rank + rope, rank))
        mixed = _attend(step, part, layer, context.permute(q, 0, 2, 1, 3), *seen)
        # (rank, heads, tokens) -> (rank, tokens, heads) -> (value, tokens, heads)
        decoded = context.mul_mat(
            step.weight(layer, "attn_v_b.weight"), context.permute(mixed, 0, 2, 1, 3)
        )
        joined = context.cont(context.permute(decoded, 0, 2, 1, 3))
        return context.reshape_2d(joined, mla.value * heads, part.tokens)

    return step.each(attended, q_nope, q_rope)


def _queries(step: Step, mla: Mla, layer: int, x: int) -> int:
    if not mla.q_rank:
        return step.linear(layer, "attn_q", x)
    low = step.norm(layer, "attn_q_a_norm", step.linear(layer, "attn_q_a", x))
    return step.linear(layer, "attn_q_b", low)


def _rotate(step: Step, layer: int, x: int) -> int:
    """Rotary embedding of (size, heads, tokens). Where the file divides frequencies, those of the
    layers that see everything are meant."""
    rope, window = step.facts.layer_ropes[layer], step.window(layer)
    divided = step.weights.get("rope_freqs.weight") if window is None else None
    return step.context.rope_ext(
        x,
        step.positions,
        step.rope_divisors if divided is None else divided,
        rope.dimensions,
        step.facts.architecture.rope,
        rope.original_context,
        rope.base,
        rope.scale,
        rope.ext_factor,
        rope.attention_factor,
        rope.beta_fast,
        rope.beta_slow,
    )


def _store(step: Step, layer: int, cache: int, values: int) -> None:
    """Write (values, tokens) into the cache places ``rows``, before anything reads them."""
    rows = step.rows[step.window(layer)]
    step.context.expand(step.context.set_rows(cache, values, rows))


def _heads_of(step: Step, part: PartStep, layer: int, cache: int, size: int, heads: int) -> int:
    """The first slots of the sequence in a cache tensor as (size, slots, heads)."""
    head_bytes = step.library.ggml_row_size(step.cache.type, size)
    row, span = ggml.tensor(cache).nb[1], part.spans[step.window(layer)]
    start = row * span.start
    return step.context.view_3d(cache, size, span.slots, heads, row, head_bytes, start)


def _attend(step: Step, part: PartStep, layer: int, q: int, keys: int, values: int) -> int:
    """q (size, tokens, heads), keys and values (size, slots, kv heads) -> (size, heads, tokens)."""
    context, scale = step.context, step.facts.attention_scale
    mask = part.spans[step.window(layer)].mask
    sinks = step.weights.get(f"blk.{layer}.attn_sinks.weight")
    if step.flash_attention:
        mixed = context.flash_attn_ext(q, keys, values, mask, scale, 0.0, 0.0)
        if sinks is not None:
            step.library.ggml_flash_attn_ext_add_sinks(mixed, sinks)
        return mixed
    scores = context.soft_max_ext(context.mul_mat(keys, q), mask, scale, 0.0)
    if sinks is not None:
        step.library.ggml_soft_max_add_sinks(scores, sinks)
    # (size, slots, kv heads) -> (slots, size, kv heads), a copy: the cache keeps rows of tokens.
    columns = context.cont(context.transpose(values))
    mixed = context.mul_mat(columns, scores)
    return context.cont(context.permute(mixed, 0, 2, 1, 3))

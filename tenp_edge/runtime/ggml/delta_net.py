"""A gated delta net: of every value head a matrix that each token corrects, then reads.

    x -> q, k, v -> convolution over the last tokens (state), silu; q and k of length 1
    x -> beta (how far a token corrects), decay (what stays of the matrix, as a logarithm)
      -> ggml_gated_delta_net (state) -> norm, times silu(z) -> output matrix

Operations and their order are llama.cpp's. Sizes in comments are as ggml counts.
"""

from __future__ import annotations

from tenp_edge.models.mixers import DeltaNet
from tenp_edge.runtime.ggml.step import PartStep, Step

_BYTES = 4  # of a float32


def build_delta_net(step: Step, layer: int, own: DeltaNet, x: int) -> int:
    """``x`` (hidden, tokens), normed -> (hidden, tokens) before the residual sum."""
    context, tokens, size, heads = step.context, step.tokens, own.head_dim, own.value_heads
    z = context.reshape_3d(step.linear(layer, "attn_gate", x), size, heads, tokens)
    beta, decay = _gates(step, layer, own, x)

    def corrected(part: PartStep, new: int, beta: int, decay: int) -> int:
        return _corrected(step, part, layer, own, new, beta, decay)

    out = step.each(corrected, step.linear(layer, "attn_qkv", x), beta, decay)
    out = context.reshape_3d(out, size, heads, tokens)
    gated = context.mul(step.norm(layer, "ssm_norm", out), context.silu(z))
    return step.linear(layer, "ssm_out", context.reshape_2d(gated, own.value_size, tokens))


def _corrected(
    step: Step, part: PartStep, layer: int, own: DeltaNet, new: int, beta: int, decay: int
) -> int:
    """Of one sequence, ``new`` (channels, tokens) and its gates (value heads, tokens) -> what the
    heads read, (value size, tokens)."""
    context, tokens, size, heads = step.context, part.tokens, own.head_dim, own.value_heads
    q, k, v = _convolved(step, part, layer, own, new)
    beta, decay = (context.reshape_4d(gate, 1, heads, tokens, 1) for gate in (beta, decay))
    memory = part.state(layer, "memory")
    # The heads' outputs, (size, heads, tokens), and behind them their matrices after the step.
    both = context.gated_delta_net(q, k, v, decay, beta, memory, 1)
    row = _BYTES * size
    after = context.view_3d(both, size, size, heads, row, row * size, row * heads * tokens)
    part.keep_state(layer, "memory", after)
    return context.view_2d(both, own.value_size, tokens, row * heads, 0)


def _convolved(
    step: Step, part: PartStep, layer: int, own: DeltaNet, new: int
) -> tuple[int, int, int]:
    """Queries, keys and values of the heads: (size, heads, tokens) each."""
    context, tokens, size = step.context, part.tokens, own.head_dim
    seen = part.convolution_inputs(layer, new)
    mixed = context.silu(context.ssm_conv(seen, step.weight(layer, "ssm_conv1d.weight")))
    counts = (own.key_heads, own.key_heads, own.value_heads)
    starts = (0, own.key_size, 2 * own.key_size)
    head, row = _BYTES * size, _BYTES * own.channels
    q, k, v = (
        context.view_3d(mixed, size, count, tokens, head, row, _BYTES * start)
        for count, start in zip(counts, starts, strict=True)
    )
    q, k = (_served(step, own, context.l2_norm(heads, step.facts.eps), tokens) for heads in (q, k))
    return q, k, v


def _served(step: Step, own: DeltaNet, x: int, tokens: int) -> int:
    """A key head's rows for each of its value heads, where these lie in groups. Where they lie by
    turns, the operation repeats the key heads by itself."""
    context, size = step.context, own.head_dim
    if step.facts.architecture.value_heads_by_turns or own.key_heads == own.value_heads:
        return x
    apart = context.reshape_4d(x, size, 1, own.key_heads, tokens)
    repeated = context.repeat_4d(
        apart, size, own.value_heads // own.key_heads, own.key_heads, tokens
    )
    return context.reshape_3d(repeated, size, own.value_heads, tokens)


def _gates(step: Step, layer: int, own: DeltaNet, x: int) -> tuple[int, int]:
    """Beta and the decay's logarithm, each (value heads, tokens)."""
    context = step.context
    beta, alpha = _projected(step, layer, own, x)
    raised = context.softplus(context.add(alpha, step.weight(layer, "ssm_dt.bias")))
    return context.sigmoid(beta), context.mul(raised, step.weight(layer, "ssm_a"))


def _projected(step: Step, layer: int, own: DeltaNet, x: int) -> tuple[int, int]:
    """Beta and alpha before their functions, (value heads, tokens); of one matrix, by key head."""
    context, tokens = step.context, step.tokens
    if step.facts.architecture.value_heads_by_turns:
        return step.linear(layer, "ssm_beta", x), step.linear(layer, "ssm_alpha", x)
    joined = step.linear(layer, "ssm_ba", x)
    served = own.value_heads // own.key_heads
    group, row = 2 * _BYTES * served, 2 * _BYTES * own.value_heads
    beta, alpha = (
        context.cont(
            context.view_3d(
                joined, served, own.key_heads, tokens, group, row, part * _BYTES * served
            )
        )
        for part in range(2)
    )
    beta, alpha = (context.reshape_2d(part, own.value_heads, tokens) for part in (beta, alpha))
    return beta, alpha

"""Mamba2: a selective state space behind a convolution over the tokens of a channel.

    x -> z;  x, b, c -> the last ones (state), then these -> convolution -> silu;  dt
      state' = exp(dt A) state + dt b x;  y = c state' + D x -> y silu(z) -> norm of each group
      -> output matrix

As llama.cpp's build_mamba2_layer. Sizes in comments are as ggml counts, row length first.
"""

from __future__ import annotations

from tenp_edge.models.mixers import Mamba2
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.step import PartStep, Step

_FLOAT = 4


def build_mamba2(step: Step, layer: int, own: Mamba2, x: int) -> int:
    """``x`` (hidden, tokens), normed -> (hidden, tokens) before the residual sum."""
    context, tokens = step.context, step.tokens
    joined = step.linear(layer, "ssm_in", x)  # z, x b c, dt: (inner + channels + heads, tokens)
    row = ggml.tensor(joined).nb[1]
    z = context.view_2d(joined, own.inner, tokens, row, 0)
    wide = context.view_2d(joined, own.channels, tokens, row, _FLOAT * own.inner)
    dt = context.view_2d(joined, own.heads, tokens, row, _FLOAT * (own.inner + own.channels))
    dt = context.add(context.cont(dt), step.weight(layer, "ssm_dt.bias"))

    def mixed(part: PartStep, new: int, dt: int) -> int:
        seen = context.silu(_convolved(step, part, layer, new))
        y = _scanned(step, part, layer, own, seen, dt)
        return context.reshape_2d(y, own.inner, part.tokens)

    y = context.reshape_3d(step.each(mixed, wide, dt), own.head_dim, own.heads, tokens)
    gate = context.reshape_3d(context.cont(z), own.head_dim, own.heads, tokens)
    y = context.swiglu_split(gate, y)
    y = context.reshape_3d(y, own.inner // own.groups, own.groups, tokens)
    y = step.norm(layer, "ssm_norm", y)
    return step.linear(layer, "ssm_out", context.reshape_2d(y, own.inner, tokens))


def _convolved(step: Step, part: PartStep, layer: int, new: int) -> int:
    """``new`` (channels, tokens) -> the same, each channel over its last taps."""
    context, seen = step.context, part.convolution_inputs(layer, new)
    mixed = context.ssm_conv(seen, step.weight(layer, "ssm_conv1d.weight"))
    return context.add(mixed, step.weight(layer, "ssm_conv1d.bias"))


def _scanned(step: Step, part: PartStep, layer: int, own: Mamba2, seen: int, dt: int) -> int:
    """The state through the tokens, ``seen`` (channels, tokens), ``dt`` (heads, tokens):
    (head_dim, heads, tokens)."""
    context, tokens, row = step.context, part.tokens, ggml.tensor(seen).nb[1]

    def channels(size: int, count: int, start: int) -> int:
        return context.view_3d(seen, size, count, tokens, _FLOAT * size, row, _FLOAT * start)

    x = channels(own.head_dim, own.heads, 0)
    b = channels(own.state, own.groups, own.inner)
    c = channels(own.state, own.groups, own.inner + own.groups * own.state)
    decay, state = step.weight(layer, "ssm_a"), part.state(layer, "ssm")
    # All of y, and behind it the new state.
    both = context.ssm_scan(state, x, dt, decay, b, c, step.sequence)
    values = own.inner * tokens
    part.keep_state(layer, "ssm", context.view_1d(both, own.inner * own.state, _FLOAT * values))
    stride = _FLOAT * own.head_dim
    y = context.view_3d(both, own.head_dim, own.heads, tokens, stride, stride * own.heads, 0)
    return context.add(y, context.mul(x, step.weight(layer, "ssm_d")))

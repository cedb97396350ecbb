"""LFM2's gated short convolution over the tokens of a channel.

    x -> b, c, u;  b u -> the last inputs (state), then the new ones -> convolution -> times c
      -> output matrix

Sizes in comments are as ggml counts, row length first.
"""

from __future__ import annotations

from tenp_edge.models.mixers import ShortConvolution
from tenp_edge.runtime.ggml.step import PartStep, Step


def build_short_convolution(step: Step, layer: int, own: ShortConvolution, x: int) -> int:
    """``x`` (hidden, tokens), normed -> (hidden, tokens) before the residual sum."""
    context, channels, tokens = step.context, own.channels, step.tokens
    joined = step.linear(layer, "shortconv.in_proj", x)
    b, c, u = (
        context.view_2d(joined, channels, tokens, 12 * channels, 4 * channels * part)
        for part in range(3)
    )

    def convolved(part: PartStep, new: int) -> int:
        seen = part.convolution_inputs(layer, new)
        return context.ssm_conv(seen, step.weight(layer, "shortconv.conv.weight"))

    mixed = step.each(convolved, context.mul(b, u))
    return step.linear(layer, "shortconv.out_proj", context.mul(c, mixed))

"""The mixing block of a layer, by its kind: attention, or one that carries a state.

A block is a function (step, layer, mixer, x) -> mixed, both (hidden, tokens). What depends on the
tokens before is built for each sequence, by ``step.each``: it reads what they left from
``step.cache`` or ``part.state``, and leaves there what the next ones need. The tokens of a part
follow one another in its sequence; any number of them must give what one at a time would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mamba2, ShortConvolution
from tenp_edge.runtime.ggml.attention import build_attention
from tenp_edge.runtime.ggml.delta_net import build_delta_net
from tenp_edge.runtime.ggml.mamba2 import build_mamba2
from tenp_edge.runtime.ggml.short_convolution import build_short_convolution
from tenp_edge.runtime.ggml.step import Step

_BUILDERS: dict[type, Callable[[Step, int, Any, int], int]] = {
    LayerAttention: build_attention,
    ShortConvolution: build_short_convolution,
    Mamba2: build_mamba2,
    DeltaNet: build_delta_net,
}


def build_mixer(step: Step, layer: int, x: int) -> int | None:
    """What ``layer`` mixes of the stream ``x`` (hidden, tokens), before it is added to it; None
    where it has no such block."""
    mixer = step.facts.mixers[layer]
    if mixer is None:
        return None
    return _BUILDERS[type(mixer)](step, layer, mixer, step.norm(layer, "attn_norm", x))

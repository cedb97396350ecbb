"""One evaluation of a graph, as the blocks of a layer see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenp_edge.models.mixers import STATE_VALUE_BYTES
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.spans import Span
from tenp_edge.runtime.ggml.states import States
from tenp_edge.runtime.ggml.weights import Cache, Weights
from tenp_edge.runtime.gguf.model_metadata import Facts


@dataclass(frozen=True)
class Step:
    """One evaluation of ``tokens`` new tokens.

    Inputs of the graph: ``positions`` (tokens) int32, and of every window its `Span`.
    ``rope_divisors`` (rotated size / 2): of the frequencies, where the file asks for some.
    ``sequence`` (1) int32: the number of the one sequence whose states these are, 0.
    """

    library: ggml.Library
    context: ggml.Context
    facts: Facts
    weights: Weights
    cache: Cache
    states: States
    flash_attention: bool
    tokens: int
    positions: int
    spans: Mapping[int | None, Span]
    rope_divisors: int | None
    sequence: int

    def window(self, layer: int) -> int | None:
        """How many tokens ``layer``, which attends, looks back; None for all of them."""
        return self.facts.attention[layer].window

    def span(self, layer: int) -> Span:
        """What ``layer`` writes and sees of its cache."""
        return self.spans[self.window(layer)]

    def state(self, layer: int, name: str) -> int:
        """What the tokens before left in the state tensor ``name``; zeros before the first one."""
        return self.states.layers[layer][name]

    def keep_state(self, layer: int, name: str, new: int) -> None:
        """Write ``new``, made of what `state` gave, into the state for the next evaluation."""
        self.context.expand(self.context.cpy(new, self.state(layer, name)))

    def convolution_inputs(self, layer: int, new: int) -> int:
        """The state "conv", and behind it ``new`` (channels, tokens): (taps - 1 + tokens,
        channels). The last taps - 1 of them are the next state."""
        context, state = self.context, self.state(layer, "conv")
        kept, channels = ggml.shape(state)
        seen = context.concat(state, context.transpose(new), 0)
        row = ggml.tensor(seen).nb[1]
        last = context.view_2d(seen, kept, channels, row, STATE_VALUE_BYTES * self.tokens)
        self.keep_state(layer, "conv", last)
        return seen

    def weight(self, layer: int, name: str) -> int:
        return self.weights[f"blk.{layer}.{name}"]

    def linear(self, layer: int, name: str, x: int) -> int:
        """``x`` times a matrix, plus its bias where the file has one."""
        product = self.context.mul_mat(self.weight(layer, f"{name}.weight"), x)
        bias = self.weights.get(f"blk.{layer}.{name}.bias")
        return product if bias is None else self.context.add(product, bias)

    def norm(self, layer: int, name: str, x: int) -> int:
        normed = self.context.rms_norm(x, self.facts.eps)
        return self.context.mul(normed, self.weight(layer, f"{name}.weight"))

    def norm_if_any(self, layer: int, name: str, x: int) -> int:
        """`norm` where the file has one of that name; `check_tensors` knows where it must."""
        there = self.weights.get(f"blk.{layer}.{name}.weight") is not None
        return self.norm(layer, name, x) if there else x

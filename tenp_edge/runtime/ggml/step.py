"""One evaluation of a graph, as the blocks of a layer see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tenp_edge.models.mixers import STATE_VALUE_BYTES
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.cache import Cache
from tenp_edge.runtime.ggml.products import Products
from tenp_edge.runtime.ggml.spans import Span
from tenp_edge.runtime.ggml.weights import Weights
from tenp_edge.runtime.gguf.model_metadata import Facts

# Of these, ggml sums a block type's products as it sums those of one.
_EXACT_COLUMNS = 4


@dataclass(frozen=True)
class PartStep:
    """The tokens ``first``.. of a step, ``tokens`` of them, which follow one another in one
    sequence: what it sees of its cache in layers of every window, and its states by layer."""

    context: ggml.Context
    first: int
    tokens: int
    spans: Mapping[int | None, Span]
    states: Sequence[Mapping[str, int]]

    def columns(self, x: int) -> int:
        """The part of ``x`` (.., tokens of the step) that is of these tokens."""
        item, view = ggml.tensor(x), self.context
        sizes, strides = item.ne, item.nb
        if sizes[2] == 1:
            return view.view_2d(x, sizes[0], self.tokens, strides[1], self.first * strides[1])
        start = self.first * strides[2]
        return view.view_3d(x, sizes[0], sizes[1], self.tokens, strides[1], strides[2], start)

    def state(self, layer: int, name: str) -> int:
        """What the tokens before left in the state tensor ``name``; zeros before the first one."""
        return self.states[layer][name]

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


@dataclass(frozen=True)
class Step:
    """One evaluation of ``tokens`` new tokens: of one sequence, or of several, a part each.

    Inputs of the graph: ``positions`` (tokens) int32; ``rows`` (tokens) int64 of every window, the
    places of its cache that are written. ``rope_divisors`` (rotated size / 2): of the frequencies,
    where the file asks for some. ``sequence`` (1) int32: the number of a sequence among those of
    its own state tensor, 0.
    """

    library: ggml.Library
    context: ggml.Context
    facts: Facts
    weights: Weights
    products: Products
    cache: Cache
    flash_attention: bool
    tokens: int
    positions: int
    rows: Mapping[int | None, int]
    parts: Sequence[PartStep]
    rope_divisors: int | None
    sequence: int

    def each(self, build: Callable[..., int], *inputs: int) -> int:
        """``build`` (part, its columns of every input) -> (rows, its tokens), of all parts: (rows,
        tokens). What is of a single sequence is built as if nothing else could be."""
        if len(self.parts) == 1:
            return build(self.parts[0], *inputs)
        context = self.context
        made = [build(part, *map(part.columns, inputs)) for part in self.parts]
        rows, _ = ggml.shape(made[0])
        joined = context.custom(ggml.F32, (rows, self.tokens), made[:1], ggml.NOTHING, 1)
        for part, own in zip(self.parts, made, strict=True):
            context.expand(context.cpy(own, part.columns(joined)))
        return joined

    def window(self, layer: int) -> int | None:
        """How many tokens ``layer``, which attends, looks back; None for all of them."""
        return self.facts.attention[layer].window

    def weight(self, layer: int, name: str) -> int:
        return self.weights[f"blk.{layer}.{name}"]

    def linear(self, layer: int, name: str, x: int) -> int:
        """``x`` times a matrix, plus its bias where the file has one."""
        product = self.product(self.weight(layer, f"{name}.weight"), x)
        bias = self.weights.get(f"blk.{layer}.{name}.bias")
        return product if bias is None else self.context.add(product, bias)

    def product(self, weight: int, x: int) -> int:
        """``x`` (.., tokens) times a matrix.

        ggml sums floats in another order for several columns than for one, and from eight on those
        of block types: such a rounding, of a router say, is seen in every logit behind a quantised
        matrix. Where the columns are of several sequences, each is multiplied as it would be alone:
        by the extension together, or one by one where that costs little."""
        context = self.context
        if len(self.parts) == 1:
            return context.mul_mat(weight, x)
        together = self.products.build(context, weight, x)
        if together is not None:
            return together
        if ggml.tensor(weight).type != ggml.F32:
            return self._in_groups(weight, x)
        rows, columns = ggml.shape(x)
        product = context.mul_mat(weight, context.reshape_3d(x, rows, 1, columns))
        return context.reshape_2d(product, ggml.shape(weight)[1], columns)

    def _in_groups(self, weight: int, x: int) -> int:
        """A few columns at a time, where each is the only one of its sequence."""
        context, (length, columns) = self.context, ggml.shape(x)
        if columns > len(self.parts) or columns <= _EXACT_COLUMNS:
            return context.mul_mat(weight, x)
        row, made = ggml.tensor(x).nb[1], 0
        for first in range(0, columns, _EXACT_COLUMNS):
            count = min(_EXACT_COLUMNS, columns - first)
            own = context.mul_mat(weight, context.view_2d(x, length, count, row, first * row))
            made = context.concat(made, own, 1) if first else own
        return made

    def norm(self, layer: int, name: str, x: int) -> int:
        normed = self.context.rms_norm(x, self.facts.eps)
        return self.context.mul(normed, self.weight(layer, f"{name}.weight"))

    def norm_if_any(self, layer: int, name: str, x: int) -> int:
        """`norm` where the file has one of that name; `check_tensors` knows where it must."""
        there = self.weights.get(f"blk.{layer}.{name}.weight") is not None
        return self.norm(layer, name, x) if there else x

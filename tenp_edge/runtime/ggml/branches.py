"""Experts of any width for many tokens: one branch of stock matrix products per expert.

    ids [top_k, tokens] -> route: for each expert, the rows that chose it
    for each expert:  x rows -> gate and up -> act(gate, up) -> down -> rows of y
    y [hidden, top_k * tokens] * weights -> sum over the slots

How many rows an expert gets is known only after routing, so every branch is built for all tokens
and `Route` writes the real counts into the shapes while the graph runs. ggml's tiled kernels then
work on exactly the rows that are needed, at any width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.untiled import BranchProducts

if TYPE_CHECKING:  # To run a file takes no family.
    from tenp_edge.models.family import Activation


@dataclass(frozen=True)
class Expert:
    """The tensors of one expert; a gate and biases where the file has some. One without neurons has
    no matrices (0): what it gives is ``down_bias``, or nothing."""

    gate: int | None
    up: int
    down: int
    gate_bias: int | None = None
    up_bias: int | None = None
    down_bias: int | None = None

    @property
    def matrices(self) -> dict[str, int]:
        """Gate (if any), up and down by these names."""
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}

    @property
    def is_empty(self) -> bool:
        return not self.down


def _swiglu_oai(context: ggml.Context, gate: int, up: int) -> int:
    """gpt-oss', with the constants that llama.cpp has in its code."""
    return context.swiglu_oai(gate, up, 1.702, 7.0)


def _swiglu(context: ggml.Context, gate: int, up: int) -> int:
    return context.swiglu_split(gate, up)


def _geglu(context: ggml.Context, gate: int, up: int) -> int:
    return context.geglu_split(gate, up)


_ACTIVATIONS: dict[Activation, Callable[[ggml.Context, int, int], int]] = {
    "silu": _swiglu,
    "gelu_tanh": _geglu,
    "swiglu_oai": _swiglu_oai,
}
# What is made of a product whose first half is gate's, where ggml has it in one operator.
_OF_BOTH: dict[Activation, str] = {"silu": "swiglu", "gelu_tanh": "geglu"}


def gated(context: ggml.Context, activation: Activation, gate: int, up: int) -> int:
    """What is made of gate and up, with ggml's own operator."""
    return _ACTIVATIONS[activation](context, gate, up)


def ungated(context: ggml.Context, activation: Activation, up: int) -> tuple[int, int]:
    """What is made of up alone, last, behind the step before it: relu(up)^2 as llama.cpp has it."""
    assert activation == "relu2"
    positive = context.relu(up)
    return positive, context.sqr(positive)


class Route:
    """The run-time part of one layer in one graph: who goes where, and the row counts."""

    def __init__(self, context: ggml.Context, experts: int, top_k: int, tokens: int) -> None:
        self._context = context
        self._experts, self._top_k, self._tokens = experts, top_k, tokens
        # Tensor addresses by the place of the row count in their shape, each with its expert: flat
        # lists, for experts whose matrices take rows of different kinds have different numbers.
        self._varying: tuple[list[tuple[int, int]], ...] = ([], [])
        self._index: npt.NDArray[np.int64] | None = None
        self._owners: npt.NDArray[np.int64] | None = None
        self.error: BaseException | None = None
        self._callback = ggml.CUSTOM_OP(self._run)
        self.function = ggml.address_of(self._callback)

    def add_branch(self, expert: int, vectors: Sequence[int], matrices: Sequence[int]) -> None:
        """An expert's tensors whose row count varies: 1-D by ne[0], 2-D by ne[1]."""
        for pairs, addresses in zip(self._varying, (vectors, matrices), strict=True):
            pairs += [(address, expert) for address in addresses]

    def reset(self) -> None:
        """Full row counts, before ggml plans its work memory from them."""
        if self._index is None:
            arrays = [np.array(pairs, dtype=np.int64).reshape(-1, 2).T for pairs in self._varying]
            indices = [self._context.indices(pairs[0], size) for size, pairs in enumerate(arrays)]
            self._index = np.concatenate(indices)
            self._owners = np.concatenate([pairs[1] for pairs in arrays])
        self._context.memory[self._index] = self._tokens

    def _run(self, address: int, _thread: int, _threads: int, _data: int | None) -> None:
        # ctypes swallows exceptions of a callback: the graph raises it again after the run.
        try:
            node = ggml.tensor(address)
            self._write(ggml.strided(node.src[0]), ggml.array(address, np.int32, self._shape))
        except BaseException as error:
            self.error = error

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (2, self._experts, self._tokens)

    def _write(self, chosen: npt.NDArray[np.int32], lists: npt.NDArray[np.int32]) -> None:
        """``chosen`` [tokens, top_k] -> lists[0]: tokens by expert, lists[1]: their y rows."""
        flat = chosen.reshape(-1)
        counts = np.bincount(flat, minlength=self._experts)
        self._context.memory[self._index] = counts[self._owners]
        order = np.argsort(flat, kind="stable")
        experts = flat[order]
        place = np.arange(len(flat)) - (np.cumsum(counts) - counts)[experts]
        lists[0, experts, place] = order // self._top_k
        lists[1, experts, place] = order


def build_branches(
    context: ggml.Context,
    experts: Sequence[Expert],
    x: int,
    ids: int,
    weights: int,
    top_k: int,
    activation: Activation = "silu",
    scales: int | None = None,
    operations: Mapping[str, int] | None = None,
) -> tuple[int, Route]:
    """The weighted sum of the experts' outputs, (hidden, tokens), and what drives it.

    ``x`` (hidden, tokens); ``ids`` and ``weights`` (top_k, tokens); ``scales`` (experts): what each
    expert's output is multiplied by before its weight; ``operations``: of the C extension.
    """
    hidden, tokens = ggml.shape(x)
    inputs_of, products = _Inputs(context, x), BranchProducts(context, operations or {})
    route = Route(context, len(experts), top_k, tokens)
    size = tokens * len(experts)
    lists = context.custom(ggml.I32, (size, 2), [ids], route.function, 1)
    y = context.custom(ggml.F32, (hidden, top_k * tokens), [lists], ggml.NOTHING, 1)
    if any(expert.is_empty for expert in experts):
        y = context.fill(y, 0.0)
    for number, expert in enumerate(experts):
        if expert.is_empty and expert.down_bias is None:
            continue
        rows = context.view_1d(lists, tokens, 4 * tokens * number)
        places = context.view_1d(lists, tokens, 4 * (size + tokens * number))
        made = _output(products, inputs_of, activation, expert, rows)
        y = context.set_rows(y, made[-1], places)
        context.expand(y)
        route.add_branch(number, (rows, places), made)
    by_slot = context.reshape_3d(y, hidden, top_k, tokens)
    if scales is not None:
        every = context.reshape_3d(scales, 1, len(experts), 1)
        every = context.repeat_4d(every, 1, len(experts), tokens, 1)
        by_slot = context.mul(by_slot, context.get_rows(every, ids))
    weighted = context.mul(by_slot, context.reshape_3d(weights, 1, top_k, tokens))
    return _sum_of_slots(context, weighted, hidden, top_k, tokens), route


def _output(
    products: BranchProducts,
    inputs_of: _Inputs,
    activation: Activation,
    expert: Expert,
    rows: int,
) -> tuple[int, ...]:
    """What ``expert`` makes of the ``rows`` of x, last, behind the tensors before it whose rows
    vary, too."""
    if expert.is_empty:
        assert expert.down_bias is not None
        (hidden, _), (tokens, _) = ggml.shape(expert.down_bias), ggml.shape(rows)
        return (products.context.repeat_4d(expert.down_bias, hidden, tokens, 1, 1),)
    inner = _neurons(products, activation, expert, inputs_of, rows)
    return *inner, *_linear(products, expert.down, expert.down_bias, inner[-1])


class _Inputs:
    """The rows of ``x`` (hidden, tokens) that an expert gets, as the kernels of its type want them.

    A quantised product first quantises what it multiplies: top_k times the same row, once per
    expert. Here ``x`` is quantised once, and the experts take its packed rows.
    """

    def __init__(self, context: ggml.Context, x: int) -> None:
        self._context, self._x = context, x
        self._hidden, self._tokens = ggml.shape(x)
        self._packed: dict[int, int] = {}

    def same(self, left: int, right: int) -> bool:
        """Whether two matrices take the same rows."""
        return self._kind(left) == self._kind(right)

    def take(self, matrix: int, rows: int) -> tuple[int, ...]:
        """Tensors of as many rows as ``rows`` has; the last is what ``matrix`` multiplies."""
        kind, context = self._kind(matrix), self._context
        if kind == ggml.F32:
            return (context.get_rows(self._x, rows),)
        if kind not in self._packed:
            self._packed[kind] = self._as(context.cast(self._x, kind), ggml.I32)
        words = context.get_rows(self._packed[kind], rows)
        return words, self._as(words, kind)

    def _kind(self, matrix: int) -> int:
        """The type that is taken: F32 where packed rows are no whole words of 4 bytes."""
        library = self._context.library
        kind = library.traits(ggml.tensor(matrix).type).vec_dot_type
        whole = library.ggml_row_size(kind, self._hidden) % 4 == 0
        return kind if whole and library.ggml_blck_size(kind) > 1 else ggml.F32

    def _as(self, item: int, kind: int) -> int:
        """The bytes of ``item`` as another type: ggml gathers words, not packed rows."""
        row, size = ggml.tensor(item).nb[1], self._context.library.ggml_type_size(kind)
        made = self._context.view_2d(item, 1, self._tokens, row, 0)
        view = ggml.tensor(made)
        view.type, view.ne[0] = kind, row // 4 if kind == ggml.I32 else self._hidden
        view.nb[0] = size
        view.nb[2] = view.nb[3] = row * self._tokens
        return made


def _linear(products: BranchProducts, matrix: int, bias: int | None, x: int) -> tuple[int, ...]:
    """The product, and its sum with the bias if there is one: the last is the result."""
    made = products.build(matrix, x)
    return made if bias is None else (*made, products.context.add(made[-1], bias))


def _neurons(
    products: BranchProducts,
    activation: Activation,
    expert: Expert,
    inputs_of: _Inputs,
    rows: int,
) -> tuple[int, ...]:
    """What is made of gate x and up x, or of up x, last, behind the tensors before it whose rows
    vary, too."""
    inputs = inputs_of.take(expert.up, rows)
    if expert.gate is None:
        right = _linear(products, expert.up, expert.up_bias, inputs[-1])
        return (*inputs, *right, *ungated(products.context, activation, right[-1]))
    same = inputs_of.same(expert.gate, expert.up)
    others = inputs if same else inputs_of.take(expert.gate, rows)
    inner = _gate_up(products, activation, expert, expert.gate, others[-1], inputs[-1])
    return (*inputs, *others, *inner)


def _gate_up(
    products: BranchProducts, activation: Activation, expert: Expert, gate: int, x: int, up_x: int
) -> tuple[int, ...]:
    """What is made of ``gate`` x and up x, last, behind the tensors before it whose rows vary.

    Where the file has ``up`` right behind ``gate`` they are one matrix of twice the rows: ggml
    shares larger products out better.
    """
    up, context = expert.up, products.context
    mergeable = activation in _OF_BOTH and expert.gate_bias is None
    if not mergeable or not _side_by_side(gate, up):
        left = _linear(products, gate, expert.gate_bias, x)
        right = _linear(products, up, expert.up_bias, up_x)
        return (*left, *right, gated(context, activation, left[-1], right[-1]))
    first = ggml.tensor(gate)
    nbytes = first.nb[1] * first.ne[1]
    both = context.view_2d(gate, first.ne[0], first.ne[1], first.nb[1], 0)
    whole = ggml.tensor(both)
    whole.ne[1] *= 2
    whole.nb[2] = whole.nb[3] = 2 * nbytes
    made = products.build(both, x)
    return *made, getattr(context, _OF_BOTH[activation])(made[-1])


def _side_by_side(gate: int, up: int) -> bool:
    """Whether two matrices are the halves of one in memory."""
    left, right = ggml.tensor(gate), ggml.tensor(up)
    same = left.type == right.type and left.ne[1] == right.ne[1]
    return same and bool(left.data + left.nb[1] * left.ne[1] == right.data)


def _sum_of_slots(
    context: ggml.Context, weighted: int, hidden: int, top_k: int, tokens: int
) -> int:
    """(hidden, top_k, tokens) -> (hidden, tokens), added slot by slot as llama.cpp does."""
    stride = 4 * hidden
    slots = [
        context.view_2d(weighted, hidden, tokens, stride * top_k, stride * slot)
        for slot in range(top_k)
    ]
    total = slots[0]
    for slot in slots[1:]:
        total = context.add(total, slot)
    return total if top_k > 1 else context.cont(total)

"""Experts of any width for a few tokens (decode): the C extension behind custom nodes.

The extension is optional; without it `kernels()` is None and every batch takes the branches of
`branches.py`, a little slower: bit for bit the same for block types and for one token, rounded
otherwise for F32 (2 to 32 tokens) and F16 (31 and 32).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.branches import Expert
from tenp_edge.runtime.ggml.columns import several_columns

if TYPE_CHECKING:  # To run a file takes no family.
    from tenp_edge.models.family import Activation

# More tokens than this share experts often enough for the tiled kernels to win.
MAX_TOKENS = 32
_KINDS = 6
_EVERY_THREAD = -1
_FLOAT_BYTES = 4

_EXPERT = np.dtype(
    [
        *((name, "<u8") for name in ("gate", "up", "down")),
        *((name, "<u8") for name in ("gate_bias", "up_bias", "down_bias")),
        *((name, "<u8") for name in ("gate_dot", "up_dot", "down_dot")),
        *((name, "<u8") for name in ("gate_rows", "up_rows", "down_rows", "quantise_h")),
        *((name, "<i8") for name in ("gate_row", "up_row", "down_row", "width")),
        ("gate_kind", "<i4"),
        ("up_kind", "<i4"),
        ("scale", "<f4"),
        ("unused", "<i4"),
    ]
)
_SCRATCH = np.dtype(
    [
        ("x", "<u8", (_KINDS,)),
        *((name, "<u8") for name in ("h", "y", "hq")),
        *((name, "<u8") for name in ("count", "start", "active", "pair", "done")),
        ("h_stride", "<i8"),
        ("hq_stride", "<i8"),
        *((name, "<i4") for name in ("active_count", "active_rows", "next_gate_up", "next_down")),
    ]
)
# A matrix outside the experts (`products`).
PRODUCT = np.dtype(
    [
        *((name, "<u8") for name in ("matrix", "quantise", "dot", "several", "x")),
        *((name, "<i8") for name in ("row_bytes", "x_row")),
        *((name, "<i4") for name in ("length", "rows", "next", "unused")),
    ]
)
_LAYER = np.dtype(
    [
        *((name, "<u8") for name in ("experts", "scratch", "activation")),
        ("quantise_x", "<u8", (_KINDS,)),
        ("x_row", "<i8", (_KINDS,)),
        *((name, "<i4") for name in ("kinds", "hidden", "expert_count", "used")),
    ]
)


@cache
def kernels() -> Mapping[str, int] | None:
    """Addresses of the extension's operations; None where it was not built or does not fit."""
    try:
        from tenp_edge.runtime.ggml import _ragged
    except ImportError:
        return None
    sizes = *(kind.itemsize for kind in (_EXPERT, _SCRATCH, _LAYER)), PRODUCT.itemsize
    if _ragged.sizes() != sizes:
        return None
    return _ragged.addresses()


@dataclass(frozen=True)
class RaggedSizes:
    """What the shared scratch memory must hold, over all layers."""

    hidden: int
    experts: int
    top_k: int
    widest: int


class Scratch:
    """Scratch memory of the custom nodes, shared by all layers of a model."""

    def __init__(self, library: ggml.Library, sizes: RaggedSizes) -> None:
        pairs = MAX_TOKENS * sizes.top_k
        self._keep: list[np.ndarray] = []
        self.record = np.zeros(1, dtype=_SCRATCH)
        # F32 is the widest form that a quantised row takes; Q8_1 and Q8_K add less than a tenth.
        row = -(-sizes.hidden // 256) * 256 * _FLOAT_BYTES + 64
        wide = -(-sizes.widest // 256) * 256 * _FLOAT_BYTES + 64
        self.record["x"] = [[self._room(MAX_TOKENS * row) for _ in range(_KINDS)]]
        self.record["h"] = self._room(pairs * wide)
        self.record["hq"] = self._room(pairs * wide)
        self.record["y"] = self._room(pairs * sizes.hidden * _FLOAT_BYTES)
        self.record["h_stride"], self.record["hq_stride"] = wide // _FLOAT_BYTES, wide
        for name, count in (
            ("count", sizes.experts),
            ("start", sizes.experts),
            ("active", sizes.experts),
            ("pair", pairs),
            ("done", sizes.experts),
        ):
            self.record[name] = self._room(4 * count)

    def _room(self, count: int) -> int:
        block = np.zeros(count + 64, dtype=np.uint8)
        self._keep.append(block)
        return -(-block.ctypes.data // 64) * 64

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._keep)


class RaggedLayer:
    """One routed layer: its experts' addresses and kernels in the form the extension reads."""

    def __init__(
        self,
        library: ggml.Library,
        operations: Mapping[str, int],
        scratch: Scratch,
        experts: Sequence[Expert],
        top_k: int,
        hidden: int,
        activation: Activation = "silu",
        scales: int | None = None,
    ) -> None:
        """``scales`` (experts): what each expert's output is multiplied by before its weight."""
        self._operations = operations
        self._records = np.zeros(len(experts), dtype=_EXPERT)
        self._record = np.zeros(1, dtype=_LAYER)
        self._scratch = scratch
        self._kinds: list[int] = []
        self._library = library
        for record, expert in zip(self._records, experts, strict=True):
            self._fill(record, expert)
        self._records["scale"] = (
            1.0 if scales is None else ggml.array(scales, np.float32, (len(experts),))
        )
        layer = self._record
        layer["experts"], layer["scratch"] = self._records.ctypes.data, scratch.record.ctypes.data
        layer["activation"] = _activation(library, operations, activation)
        layer["hidden"], layer["expert_count"], layer["used"] = hidden, len(experts), top_k
        layer["kinds"] = len(self._kinds)
        for index, kind in enumerate(self._kinds):
            layer["quantise_x"][0, index] = library.traits(kind).from_float
            layer["x_row"][0, index] = library.ggml_row_size(kind, hidden)

    def _fill(self, record: np.void, expert: Expert) -> None:
        matrices = expert.matrices
        for name in ("gate", "up", "down"):
            bias = getattr(expert, f"{name}_bias")
            record[f"{name}_bias"] = 0 if bias is None else ggml.tensor(bias).data
            if expert.is_empty or name not in matrices:
                continue
            item = ggml.tensor(matrices[name])
            traits = self._library.traits(item.type)
            record[name], record[f"{name}_row"] = item.data, item.nb[1]
            record[f"{name}_dot"] = traits.vec_dot
            record[f"{name}_rows"] = several_columns(self._library, item.type)
            if name == "down":
                record["quantise_h"] = self._library.traits(traits.vec_dot_type).from_float
                record["width"] = item.ne[0]
            else:
                record[f"{name}_kind"] = self._kind(traits.vec_dot_type)

    def _kind(self, kind: int) -> int:
        if kind not in self._kinds:
            self._kinds.append(kind)
        return self._kinds.index(kind)

    def build(self, context: ggml.Context, x: int, ids: int, weights: int) -> int:
        """As `build_branches`, for at most MAX_TOKENS tokens."""
        assert len(self._kinds) <= _KINDS
        hidden, tokens = ggml.shape(x)
        assert tokens <= MAX_TOKENS
        data, operations = self._record.ctypes.data, self._operations

        def node(shape: tuple[int, int], sources: list[int], name: str) -> int:
            return context.custom(ggml.F32, shape, sources, operations[name], _EVERY_THREAD, data)

        ready = node((1, 1), [x, ids], "prepare")
        inner = node((1, 1), [ready], "gate_up")
        return node((hidden, tokens), [x, ids, weights, inner], "down")


def _activation(
    library: ggml.Library, operations: Mapping[str, int], activation: Activation
) -> int:
    """The extension's own, but for ggml's vectorised silu(gate) * up where it is exported."""
    if activation == "gelu_tanh":
        _share_gelu_table(library)
    function = library.optional("ggml_vec_swiglu_f32") if activation == "silu" else None
    if function is None:
        return operations[activation]
    return ctypes.cast(function, ctypes.c_void_p).value or operations[activation]


@cache
def _gelu_table(library: ggml.Library) -> npt.NDArray[np.float32] | None:
    """ggml's GELU of every float16, as floats by the bits; None where it is not exported."""
    halves = library.half_table("ggml_table_gelu_f16")
    return None if halves is None else halves.astype(np.float32)


def knows(library: ggml.Library, activation: Activation) -> bool:
    """Whether the extension computes ``activation`` to the last bit as ggml does."""
    return activation != "gelu_tanh" or _gelu_table(library) is not None


def _share_gelu_table(library: ggml.Library) -> None:
    from tenp_edge.runtime.ggml import _ragged

    table = _gelu_table(library)
    assert table is not None
    _ragged.use_gelu_table(table.ctypes.data)

"""Products of a prompt's rows with types that ggml has no tiled kernel of, in the C extension.

ggml multiplies Q4_1 and Q5_1 (what the pruned rows of a Q5_K file fall back to) row by row and
column by column; the extension unpacks a row once for eight columns, which is 1.5 times as fast and
the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.columns import several_columns

_EVERY_THREAD = -1
_UNTILED = frozenset({ggml.Q4_1, ggml.Q5_1})
_LONGEST = 256 * 64  # values of a row, MOST_BLOCKS in _columns.h


@dataclass(frozen=True)
class BranchProducts:
    """Products with rows whose number is known only when the graph runs. ``operations``: of the
    extension, empty without it."""

    context: ggml.Context
    operations: Mapping[str, int]

    def build(self, matrix: int, x: int) -> tuple[int, ...]:
        """``matrix`` times ``x`` (length, tokens), in float32 or as the matrix' type packs it. The
        last is the product, behind a tensor of as many rows."""
        item, context = ggml.tensor(matrix), self.context
        library = context.library
        several = self._kernel(item)
        if not several:
            return (context.mul_mat(matrix, x),)
        before: tuple[int, ...] = ()
        kind = library.traits(item.type).vec_dot_type
        if ggml.tensor(x).type != kind:
            x = context.cast(x, kind)
            before = (x,)
        shape = item.ne[1], ggml.shape(x)[1]
        operation = self.operations["packed_product"]
        made = context.custom(ggml.F32, shape, [x, matrix], operation, _EVERY_THREAD, several)
        return (*before, made)

    def _kernel(self, item: ggml.Tensor) -> int:
        """Its address; 0 where ggml's own product is used."""
        if not self.operations or item.type not in _UNTILED or item.ne[0] > _LONGEST:
            return 0
        return several_columns(self.context.library, item.type)

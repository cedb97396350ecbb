"""Products with a quantised matrix for a few tokens: the C extension unpacks each row of it once.

ggml multiplies a row with one column after the other, so eight tokens cost eight times one. For the
types of `columns.several_columns` two custom nodes do it together: x as the matrix' dot product
wants it, then rows, first come first served. The numbers are ggml's to the last bit.
"""

from __future__ import annotations

import numpy as np

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.columns import several_columns
from tenp_edge.runtime.ggml.ragged import MAX_TOKENS, PRODUCT, kernels
from tenp_edge.runtime.ggml.weights import Weights

_EVERY_THREAD = -1


class Products:
    """The matrices of a model that can be multiplied with several columns at once."""

    def __init__(self, library: ggml.Library, weights: Weights, *, use_extension: bool) -> None:
        self._library = library
        operations = kernels() if use_extension else None
        self._operations = operations or {}
        self._records: dict[int, np.ndarray] = {}
        self._scratch = np.zeros(self._needed(weights) if operations else 0, dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        return int(self._scratch.nbytes)

    def _needed(self, weights: Weights) -> int:
        """Bytes of the widest x, of as many tokens as there may be."""
        items = [ggml.tensor(address) for address in weights.tensors.values()]
        rows = [self._x_row(item) for item in items if several_columns(self._library, item.type)]
        return MAX_TOKENS * max(rows) + 64 if rows else 0

    def _x_row(self, item: ggml.Tensor) -> int:
        kind = self._library.traits(item.type).vec_dot_type
        return int(self._library.ggml_row_size(kind, item.ne[0]))

    def build(self, context: ggml.Context, matrix: int, x: int) -> int | None:
        """``matrix`` times ``x`` (length, tokens), None where ggml does it as well."""
        tokens, item = ggml.shape(x)[1], ggml.tensor(matrix)
        if not 1 < tokens <= MAX_TOKENS or not self._operations or item.ne[2] > 1:
            return None
        if not several_columns(self._library, item.type):
            return None
        data = self._record(matrix, item).ctypes.data

        def node(shape: tuple[int, int], sources: list[int], name: str) -> int:
            operation = self._operations[name]
            return context.custom(ggml.F32, shape, sources, operation, _EVERY_THREAD, data)

        ready = node((1, 1), [x], "product_prepare")
        return node((item.ne[1], tokens), [ready], "product")

    def _record(self, matrix: int, item: ggml.Tensor) -> np.ndarray:
        if matrix not in self._records:
            self._records[matrix] = record = np.zeros(1, dtype=PRODUCT)
            traits = self._library.traits(item.type)
            record["matrix"], record["row_bytes"] = item.data, item.nb[1]
            record["quantise"] = self._library.traits(traits.vec_dot_type).from_float
            record["dot"] = traits.vec_dot
            record["several"] = several_columns(self._library, item.type)
            record["x"] = -(-self._scratch.ctypes.data // 64) * 64
            record["x_row"] = self._x_row(item)
            record["length"], record["rows"] = item.ne[0], item.ne[1]
        return self._records[matrix]

"""Build a graph node by node: names that are paths, constants once, weights as promises.

A node is named after its path and operator (/model/layers.0/moe/experts.3/down_proj/MatMul), its
output adds "/out". Weights and constants live in the outer graph, so that subgraphs share them.

A builder in ``sketch`` mode makes no nodes at all: it only collects what would be stored, which is
what a plan's price needs, twenty times faster (0.3 s for 48 layers of 128 experts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tenp_edge.exporters.onnx.files.stored import Fill, Stored

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
END = 2**31 - 1  # of a Slice: as far as the axis goes
Array = npt.NDArray[Any]
Input = ir.Value | Array | int | list[int] | None
Dims = Sequence[int | str | None]
_NOTHING = ir.Value(name="")


class GraphBuilder:
    """Collects the nodes, constants and weights of one graph in the order they are asked for."""

    def __init__(self, sketch: bool = False) -> None:
        self.sketch = sketch
        self.stored: dict[str, Stored] = {}
        self.fills: list[Fill] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._names: set[str] = set()

    # -- values ------------------------------------------------------------------------------------

    def input(self, name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
        value = _value(name, dtype, dims)
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, dims: Dims) -> None:
        """Make ``value`` an output of the graph under the name callers know it by."""
        if not self.sketch:
            value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(dims)
            self.outputs.append(value)

    def weight(self, stored: Stored) -> ir.Value:
        """An initializer in a data file; the same name twice is the same weight."""
        if stored.name not in self.stored:
            self.stored[stored.name] = stored
            if not self.sketch:
                value = _value(stored.name, stored.dtype, stored.shape)
                self._initializers[stored.name] = value
        return _NOTHING if self.sketch else self._initializers[stored.name]

    def fill(self, fill: Fill) -> None:
        """Say how weights get their numbers, once for each."""
        self.fills.append(fill)

    def constant(self, array: Array, name: str | None = None) -> ir.Value:
        """A small initializer inside the model file; equal ones are shared unless named."""
        if self.sketch:
            return _NOTHING
        shape = "x".join(map(str, array.shape))
        name = name or f"/constants/{array.dtype}/{shape}/{'_'.join(map(str, array.flat))}"
        if name not in self._initializers:
            value = _value(name, ir.DataType.from_numpy(array.dtype), array.shape)
            value.const_value = ir.tensor(array, name=name)
            self._initializers[name] = value
        return self._initializers[name]

    # -- nodes -------------------------------------------------------------------------------------

    def op(
        self, path: str, kind: str, inputs: Sequence[Input], domain: str = "", **attributes: Any
    ) -> ir.Value:
        """One node with one output."""
        return self.ops(path, kind, inputs, 1, domain, **attributes)[0]

    def ops(
        self,
        path: str,
        kind: str,
        inputs: Sequence[Input],
        outputs: int,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """One node with ``outputs`` outputs. An int is an int64 scalar, a list a vector."""
        if self.sketch:
            return [_NOTHING] * outputs
        name = f"{path}/{kind}"
        assert name not in self._names, name
        self._names.add(name)
        operands = [self._operand(value) for value in inputs]
        node = ir.node(kind, operands, attributes, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}/out" if outputs == 1 else f"{name}/out.{index}"
        self._nodes.append(node)
        return node.outputs

    def subgraph(
        self, name: str, make: Callable[[], Sequence[tuple[ir.Value, ir.DataType]]]
    ) -> ir.Graph:
        """A graph without inputs (a branch of If) of the nodes that ``make`` asks for."""
        outer, self._nodes = self._nodes, []
        try:
            outputs = make()
            nodes = self._nodes
        finally:
            self._nodes = outer
        if self.sketch:
            return _EMPTY
        for value, dtype in outputs:
            value.type = ir.TensorType(dtype)
        return ir.Graph([], [value for value, _ in outputs], nodes=nodes, name=name)

    def loop_body(
        self,
        name: str,
        inputs: Sequence[str],
        make: Callable[..., Sequence[ir.Value]],
        dtype: ir.DataType,
    ) -> ir.Graph:
        """A graph with ``inputs`` (the body of Scan) of the nodes that ``make`` asks for of them;
        everything it takes and gives is of ``dtype``, its shapes the loop's affair."""
        given = [ir.Value(name=f"{name}/{each}", type=ir.TensorType(dtype)) for each in inputs]
        body = self.subgraph(name, lambda: [(value, dtype) for value in make(*given)])
        if not self.sketch:
            body.inputs.extend(given)
        return body

    def graph(self, name: str, opsets: Mapping[str, int]) -> ir.Graph:
        """The finished outer graph."""
        assert not self.sketch
        return ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=dict(opsets),
            name=name,
        )

    def _operand(self, value: Input) -> ir.Value | None:
        if value is None or isinstance(value, ir.Value):
            return value
        return self.constant(
            np.asarray(value, np.int64) if isinstance(value, int | list) else value
        )


_EMPTY = ir.Graph([], [], nodes=[], name="")


def _value(name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))

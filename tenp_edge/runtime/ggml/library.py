"""The installed ggml, opened and tested before anything relies on it."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml.bindings import (
    F32,
    HINT,
    Q8_0,
    Allocator,
    Backend,
    Context,
    Library,
    array,
    tensor,
)

_TENSOR_OVERHEAD = 368  # ggml_object header (32) and ggml_tensor (336)


@cache
def open_library() -> Library:
    """The checked library; UserError when it is missing or not the one we know."""
    library = Library(_open())
    _check_layout(library)
    library.ggml_cpu_init()
    _check_product(library)
    return library


def _open() -> list[ctypes.CDLL]:
    """libggml, whose dependencies carry the other symbols; on Windows all three by name."""
    spec = find_spec("llama_cpp")
    folders = (
        [Path(place) / "lib" for place in (spec.submodule_search_locations or ())] if (spec) else []
    )
    for folder in folders:
        for name in ("libggml.so", "libggml.dylib"):
            if (folder / name).is_file():
                return [ctypes.CDLL(str(folder / name))]
        files = [folder / f"{name}.dll" for name in ("ggml-base", "ggml-cpu", "ggml")]
        if all(file.is_file() for file in files):
            return [ctypes.CDLL(str(file)) for file in files]
    raise UserError("llama-cpp-python is not installed", "pip install llama-cpp-python")


def _check_layout(found: Library) -> None:
    overhead = found.ggml_tensor_overhead()
    if overhead != _TENSOR_OVERHEAD:
        raise _unknown(found, f"a tensor of {_TENSOR_OVERHEAD} bytes expected, found {overhead}")
    with Context(found, 2) as context:
        whole = context.new_tensor_2d(Q8_0, 64, 3)
        view = tensor(context.view_2d(whole, 64, 2, 68, 68))
        sizes = (list(view.ne), list(view.nb), view.type, view.view_src, view.view_offs)
    if sizes != ([64, 2, 1, 1], [34, 68, 136, 136], Q8_0, whole, 68):
        raise _unknown(found, "the fields of a tensor lie elsewhere")


def _check_product(found: Library) -> None:
    """One small matrix product through the graph, the allocator and the backend."""
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    values = np.arange(8, dtype=np.float32).reshape(2, 4) - 3
    with Context(found, 8, graph_nodes=8) as context, Allocator(found) as allocator:
        left, right = context.new_tensor_2d(F32, 4, 3), context.new_tensor_2d(F32, 4, 2)
        product = context.mul_mat(left, right)
        for item in (left, right):
            found.ggml_set_input(item)
        found.ggml_set_output(product)
        context.expand(product)
        allocator.place(context.graph)
        array(left, np.float32, (3, 4))[:] = weights
        array(right, np.float32, (2, 4))[:] = values
        with Backend(found, 1) as backend:
            backend.compute(context.graph)
        result = array(product, np.float32, (2, 3)).copy()
    if not np.array_equal(result, values @ weights.T):
        raise _unknown(found, "a matrix product came out wrong")


def _unknown(found: Library, why: str) -> UserError:
    version = found.ggml_version().decode(errors="replace")
    return UserError(f"this runtime does not know ggml {version}: {why}", HINT)

"""ctypes on the ggml that llama-cpp-python ships: its functions, a tensor's layout, its objects.

Tensors, contexts and graphs are plain addresses (int). ggml aborts the process on a wrong call, so
everything that comes from a user is checked before it gets here. `open_library` opens it, and
refuses one whose structures are not the ones this module knows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml.uninterrupted import uninterrupted

HINT = "pip install 'llama-cpp-python>=0.3.36,<0.4'"

F32, F16, I32, I64 = 0, 1, 26, 27
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 2, 3, 6, 7, 8, 12, 13, 14
IQ4_NL, IQ4_XS = 20, 23

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_S, _B, _T = ctypes.c_size_t, ctypes.c_bool, ctypes.c_char_p
CUSTOM_OP = ctypes.CFUNCTYPE(None, _P, _I, _I, _P)
Sizes = ctypes.c_int64
Bytes = npt.NDArray[np.uint8]


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _S), ("mem_buffer", _P), ("no_alloc", _B))


class Tensor(ctypes.Structure):
    """struct ggml_tensor; ``ne`` counts elements from the row inwards, ``nb`` strides in bytes."""

    _fields_ = (
        ("type", _I),
        ("buffer", _P),
        ("ne", _L * 4),
        ("nb", _S * 4),
        ("op", _I),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _P * 10),
        ("view_src", _P),
        ("view_offs", _S),
        ("data", _P),
        ("name", ctypes.c_char * 64),
        ("extra", _P),
        ("padding", ctypes.c_char * 8),
    )


class CpuTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu: the kernels of a type."""

    _fields_ = (("from_float", _P), ("vec_dot", _P), ("vec_dot_type", _I), ("nrows", _L))


# name -> (result, arguments). A tensor operation takes the context first.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_version": (_T, ()),
    "ggml_init": (_P, (InitParams,)),
    "ggml_free": (None, (_P,)),
    "ggml_used_mem": (_S, (_P,)),
    "ggml_tensor_overhead": (_S, ()),
    "ggml_graph_overhead_custom": (_S, (_S, _B)),
    "ggml_new_graph_custom": (_P, (_P, _S, _B)),
    "ggml_build_forward_expand": (None, (_P, _P)),
    "ggml_graph_n_nodes": (_I, (_P,)),
    "ggml_new_tensor": (_P, (_P, _I, _I, ctypes.POINTER(_L))),
    "ggml_new_tensor_1d": (_P, (_P, _I, _L)),
    "ggml_new_tensor_2d": (_P, (_P, _I, _L, _L)),
    "ggml_nbytes": (_S, (_P,)),
    "ggml_row_size": (_S, (_I, _L)),
    "ggml_blck_size": (_L, (_I,)),
    "ggml_type_size": (_S, (_I,)),
    "ggml_set_input": (None, (_P,)),
    "ggml_set_output": (None, (_P,)),
    "ggml_add": (_P, (_P, _P, _P)),
    "ggml_mul": (_P, (_P, _P, _P)),
    "ggml_div": (_P, (_P, _P, _P)),
    "ggml_scale": (_P, (_P, _P, _F)),
    "ggml_scale_bias": (_P, (_P, _P, _F, _F)),
    "ggml_clamp": (_P, (_P, _P, _F, _F)),
    "ggml_fill": (_P, (_P, _P, _F)),
    "ggml_sum_rows": (_P, (_P, _P)),
    "ggml_rms_norm": (_P, (_P, _P, _F)),
    "ggml_mul_mat": (_P, (_P, _P, _P)),
    "ggml_get_rows": (_P, (_P, _P, _P)),
    "ggml_set_rows": (_P, (_P, _P, _P, _P)),
    "ggml_sigmoid": (_P, (_P, _P)),
    "ggml_silu": (_P, (_P, _P)),
    "ggml_soft_max": (_P, (_P, _P)),
    "ggml_soft_max_ext": (_P, (_P, _P, _P, _F, _F)),
    "ggml_soft_max_add_sinks": (None, (_P, _P)),
    "ggml_argsort_top_k": (_P, (_P, _P, _I)),
    "ggml_swiglu": (_P, (_P, _P)),
    "ggml_swiglu_split": (_P, (_P, _P, _P)),
    "ggml_geglu": (_P, (_P, _P)),
    "ggml_geglu_split": (_P, (_P, _P, _P)),
    "ggml_tanh": (_P, (_P, _P)),
    "ggml_relu": (_P, (_P, _P)),
    "ggml_sqr": (_P, (_P, _P)),
    "ggml_repeat_4d": (_P, (_P, _P, _L, _L, _L, _L)),
    "ggml_swiglu_oai": (_P, (_P, _P, _P, _F, _F)),
    "ggml_concat": (_P, (_P, _P, _P, _I)),
    "ggml_cont": (_P, (_P, _P)),
    "ggml_cpy": (_P, (_P, _P, _P)),
    "ggml_ssm_conv": (_P, (_P, _P, _P)),
    "ggml_ssm_scan": (_P, (_P, _P, _P, _P, _P, _P, _P, _P)),
    "ggml_gated_delta_net": (_P, (_P, _P, _P, _P, _P, _P, _P, _L)),
    "ggml_l2_norm": (_P, (_P, _P, _F)),
    "ggml_softplus": (_P, (_P, _P)),
    "ggml_cast": (_P, (_P, _P, _I)),
    "ggml_transpose": (_P, (_P, _P)),
    "ggml_permute": (_P, (_P, _P, _I, _I, _I, _I)),
    "ggml_reshape_2d": (_P, (_P, _P, _L, _L)),
    "ggml_reshape_3d": (_P, (_P, _P, _L, _L, _L)),
    "ggml_reshape_4d": (_P, (_P, _P, _L, _L, _L, _L)),
    "ggml_view_1d": (_P, (_P, _P, _L, _S)),
    "ggml_view_2d": (_P, (_P, _P, _L, _L, _S, _S)),
    "ggml_view_3d": (_P, (_P, _P, _L, _L, _L, _S, _S, _S)),
    "ggml_rope_ext": (_P, (_P, _P, _P, _P, _I, _I, _I, _F, _F, _F, _F, _F, _F)),
    "ggml_flash_attn_ext": (_P, (_P, _P, _P, _P, _P, _F, _F, _F)),
    "ggml_flash_attn_ext_add_sinks": (None, (_P, _P)),
    "ggml_custom_4d": (_P, (_P, _I, _L, _L, _L, _L, ctypes.POINTER(_P), _I, _P, _I, _P)),
    "ggml_gallocr_new": (_P, (_P,)),
    "ggml_gallocr_free": (None, (_P,)),
    "ggml_gallocr_alloc_graph": (_B, (_P, _P)),
    "ggml_gallocr_reserve_n_size": (None, (_P, _P, _P, _P, ctypes.POINTER(_S))),
    "ggml_gallocr_get_buffer_size": (_S, (_P, _I)),
    "ggml_backend_cpu_buffer_type": (_P, ()),
    "ggml_backend_cpu_buffer_from_ptr": (_P, (_P, _S)),
    "ggml_backend_buffer_free": (None, (_P,)),
    "ggml_backend_tensor_alloc": (_I, (_P, _P, _P)),
    "ggml_backend_cpu_init": (_P, ()),
    "ggml_cpu_init": (None, ()),
    "ggml_backend_cpu_set_n_threads": (None, (_P, _I)),
    "ggml_backend_graph_compute": (_I, (_P, _P)),
    "ggml_backend_free": (None, (_P,)),
    "ggml_get_type_traits_cpu": (ctypes.POINTER(CpuTraits), (_I,)),
}


class Library:
    """The functions of `_SIGNATURES` as attributes."""

    def __init__(self, handles: Sequence[ctypes.CDLL]) -> None:
        self._handles = handles
        missing = [name for name in _SIGNATURES if self._bind(name) is None]
        if missing:
            raise UserError(
                f"the ggml of the installed llama-cpp-python has no {', '.join(missing)}", HINT
            )

    def _bind(self, name: str) -> Any:
        function = self.optional(name)
        if function is not None:
            function.restype, function.argtypes = _SIGNATURES[name]
            setattr(self, name, function)
        return function

    def optional(self, name: str) -> Any:
        """The function ``name`` of any of the libraries, or None."""
        return next((getattr(h, name) for h in self._handles if hasattr(h, name)), None)

    def half_table(self, name: str) -> npt.NDArray[np.float16] | None:
        """A table of ggml's with a value for every float16; None where it is not exported."""
        for handle in self._handles:
            try:
                table = (ctypes.c_uint16 * 2**16).in_dll(handle, name)
            except ValueError:
                continue
            return np.ctypeslib.as_array(table).view(np.float16)
        return None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def traits(self, kind: int) -> CpuTraits:
        """The CPU kernels of ggml type ``kind``."""
        traits: CpuTraits = self.ggml_get_type_traits_cpu(kind).contents
        return traits


# -- what the runtime builds with ------------------------------------------------------------------


def tensor(address: int) -> Tensor:
    """The structure at ``address``; writing to it changes the tensor."""
    return Tensor.from_address(address)


def array(address: int, dtype: type[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """The data of a contiguous tensor as an array of ``shape`` (row-major), without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    data = tensor(address).data
    assert data, "the tensor has no memory yet"
    memory = (ctypes.c_char * size).from_address(data)
    view: npt.NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=memoryview(memory))
    return view


def shape(address: int) -> tuple[int, int]:
    """(row length, rows) of a matrix."""
    sizes = tensor(address).ne
    return int(sizes[0]), int(sizes[1])


def strided(address: int) -> npt.NDArray[np.int32]:
    """A matrix of int32 whose rows need not be contiguous, as [rows, row length]."""
    item = tensor(address)
    length, rows = shape(address)
    stride = item.nb[1] // 4
    memory = (ctypes.c_int32 * ((rows - 1) * stride + length)).from_address(item.data)
    flat = np.frombuffer(memory, np.int32)
    return np.lib.stride_tricks.as_strided(flat, (rows, length), (4 * stride, 4))


def address_of(function: Any) -> int:
    """The address of a ctypes callback, which must be kept alive as long as it can be called."""
    return ctypes.cast(function, _P).value or 0


_nothing = CUSTOM_OP(lambda _node, _thread, _threads, _data: None)
# A custom operation that only gives its node memory, to be written by later nodes.
NOTHING = address_of(_nothing)


class Context:
    """Room for ``tensors`` tensors without data and, if asked for, a graph.

    Operations are methods without the ``ggml_`` prefix: ``context.add(a, b)``. The structures lie
    in ``memory``, an array of int64, so that many of them can be changed in one step.
    """

    def __init__(self, found: Library, tensors: int, graph_nodes: int = 0) -> None:
        self.library = found
        graph = found.ggml_graph_overhead_custom(graph_nodes, False) if graph_nodes else 0
        size = (tensors + 8) * found.ggml_tensor_overhead() + graph + 256
        self._block = np.zeros(size // 8 + 8, dtype=np.int64)
        start = -(self._block.ctypes.data // 8) % 2  # ggml wants 16-byte alignment
        self.memory = self._block[start:]
        parameters = InitParams(self.memory.nbytes // 16 * 16, self.memory.ctypes.data, True)
        self.address: int = found.ggml_init(parameters)
        self.graph: int = (
            found.ggml_new_graph_custom(self.address, graph_nodes, False) if graph_nodes else 0
        )

    def __getattr__(self, name: str) -> Callable[..., int]:
        operation = partial(getattr(self.library, f"ggml_{name}"), self.address)
        self.__dict__[name] = operation
        return operation

    @property
    def used_bytes(self) -> int:
        """How much of the room is taken; the rest was never touched."""
        return int(self.library.ggml_used_mem(self.address))

    def expand(self, item: int) -> None:
        """Append ``item`` and what it needs to the graph."""
        self.library.ggml_build_forward_expand(self.graph, item)

    def custom(
        self,
        kind: int,
        shape: tuple[int, int],
        sources: Sequence[int],
        function: int,
        tasks: int,
        data: int | None = None,
    ) -> int:
        """A node of ``shape`` (ne0, ne1) that calls ``function``; tasks -1 means every thread."""
        pointers = (_P * len(sources))(*sources)
        made: int = self.library.ggml_custom_4d(
            self.address, kind, *shape, 1, 1, pointers, len(sources), function, tasks, data
        )
        return made

    def indices(self, addresses: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """Where in ``memory`` the ``ne[size]`` of the tensors at ``addresses`` lie."""
        offset = Tensor.ne.offset + 8 * size - self.memory.ctypes.data
        return (addresses + offset) // 8

    def close(self) -> None:
        if self.address:
            self.library.ggml_free(self.address)
            self.address = 0
            # Now, not when Python's collector finds the cycle through a callback: a server's
            # memory would grow by megabytes until then.
            self._block = self.memory = np.empty(0, dtype=np.int64)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Allocator:
    """One compute buffer that the graphs placed in it share, one after the other."""

    def __init__(self, found: Library) -> None:
        self._library = found
        self.address: int = found.ggml_gallocr_new(found.ggml_backend_cpu_buffer_type())

    def needed(self, graph: int) -> int:
        """Bytes that ``graph`` would take. Allocates nothing and forgets what was placed."""
        size = _S()
        self._library.ggml_gallocr_reserve_n_size(
            self.address, graph, None, None, ctypes.byref(size)
        )
        return size.value

    def place(self, graph: int) -> None:
        """Give every tensor of ``graph`` its address; UserError when memory is short."""
        if not self._library.ggml_gallocr_alloc_graph(self.address, graph):
            raise UserError(
                "there is not enough memory for the compute buffer", "a smaller --ubatch"
            )

    @property
    def nbytes(self) -> int:
        return int(self._library.ggml_gallocr_get_buffer_size(self.address, 0))

    def close(self) -> None:
        if self.address:
            self._library.ggml_gallocr_free(self.address)
            self.address = 0

    def __enter__(self) -> Allocator:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Backend:
    """The CPU backend with ``threads`` threads."""

    def __init__(self, found: Library, threads: int) -> None:
        self._library = found
        self.address: int = found.ggml_backend_cpu_init()
        found.ggml_backend_cpu_set_n_threads(self.address, threads)

    def compute(self, graph: int) -> None:
        with uninterrupted():
            status = self._library.ggml_backend_graph_compute(self.address, graph)
        assert status == 0, f"ggml could not compute the graph (status {status})"

    def close(self) -> None:
        if self.address:
            self._library.ggml_backend_free(self.address)
            self.address = 0

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

"""GELU itself in both runtimes, in the place of ggml's table of float16 numbers.

ggml looks GELU up: its argument and its value are rounded to float16. A rounding that falls the
other way, for a last bit of difference before it, moves a neuron by 5e-4, and the layers behind it
multiply that. So the table is compared by itself, and everything else without it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.llamacpp.native import native

Floats = npt.NDArray[np.float32]
SETTINGS: dict[str, Any] = {"context": 128, "threads": 1, "kv_type": "F32"}


def exact_llamacpp(file: Path, tokens: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Floats:
    """Logits of unmodified llama.cpp; what its GELU nodes gave is corrected while it computes."""
    module = native()
    done: list[bytes] = []
    default = module.llama_context_default_params

    def after(address: int, is_asked: bool, _: object) -> bool:
        node = ggml.tensor(address)
        if b"geglu" in node.name and is_asked:
            return True
        if not is_asked:
            _compute(node)
            done.append(node.name)
        return not is_asked

    callback = module.ggml_backend_sched_eval_callback(after)

    def params() -> Any:
        made = default()
        made.cb_eval = callback
        return made

    monkeypatch.setattr(module, "llama_context_default_params", params)
    with LlamaCppModel(file, **SETTINGS) as model:
        logits = model.logits(tokens)
    assert done
    return logits


def exact_ours(file: Path, tokens: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Floats:
    """Logits of our runtime's prefill, with a node of Python's in the place of ggml's."""
    done: list[int] = []

    def run(address: int, *_: object) -> None:
        _compute(ggml.tensor(address))
        done.append(address)

    callback = ggml.CUSTOM_OP(run)

    def node(context: ggml.Context, *sources: int) -> int:
        length, rows = ggml.shape(sources[0])
        length = length if len(sources) > 1 else length // 2
        operation = ggml.address_of(callback)
        return context.custom(ggml.F32, (length, rows), list(sources), operation, 1, 0)

    monkeypatch.setattr(ggml.Context, "geglu", node, raising=False)
    monkeypatch.setattr(ggml.Context, "geglu_split", node, raising=False)
    with PerExpertModel(file, **SETTINGS) as model:
        logits = model.logits(tokens)
    assert done
    return logits


def _compute(node: ggml.Tensor) -> None:
    """gelu(gate) * up of the sources of ``node``, of one that holds both the halves of its rows."""
    sources = [_rows(ggml.tensor(address)) for address in node.src[:2] if address]
    gate, up = sources if len(sources) == 2 else np.split(sources[0], 2, axis=-1)
    exact = torch.nn.functional.gelu(torch.from_numpy(gate.copy()), approximate="tanh")
    _rows(node)[...] = exact.numpy() * up


def _rows(tensor: ggml.Tensor) -> Floats:
    """The data of a float32 tensor, [..., row], whatever its strides."""
    sizes, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    if not all(sizes):
        return np.empty(sizes, np.float32)
    count = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) // 4
    memory = (ctypes.c_float * count).from_address(tensor.data)
    flat = np.frombuffer(memory, np.float32)
    return np.lib.stride_tricks.as_strided(flat, sizes, strides)

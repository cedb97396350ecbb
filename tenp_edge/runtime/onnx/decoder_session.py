"""One decoder graph in onnxruntime, whatever its shapes are.

    input_ids      [batch, length] int64          logits       [batch, length, vocab]
    attention_mask [batch, past + length] int64   present.N.*  the cache with the new tokens, or
    position_ids   [batch, length] int64                       the new tokens' part alone
    past_key_values.N.key / .value  [batch, heads, past, size]

    past_state.N.NAME  [batch, ...]               present_state.N.NAME  [batch, ...]

A dimension is a number where the graph fixes it. The cache's third name and the number of its
tensors per layer are the graph's own affair (a latent cache has one); the axis before the last
counts tokens. A state has one size, whatever came before, and a layer has a cache or states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.onnx.directory import exported_again, refused
from tenp_edge.runtime.session import thread_count

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]
TOKENS = "input_ids"
MASK = "attention_mask"
POSITIONS = "position_ids"
LOGITS = "logits"
_PAST, _PRESENT = "past_key_values.", "present."
_PAST_STATE, _PRESENT_STATE = "past_state.", "present_state."
TOKEN_AXIS = -2
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def onnxruntime() -> Any:
    """The package. Raises UserError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"onnxruntime cannot be loaded: {error}", "pip install onnxruntime"
        ) from None
    return onnxruntime


def open_session(graph: Path, threads: int | None, prepack: bool) -> Any:
    """``graph`` in onnxruntime on the CPU.

    ``prepack`` False leaves the weights where they are mapped from the file instead of keeping a
    second copy that is laid out for speed: several times less memory, and slower.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 4  # its errors come as exceptions
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other base
        raise refused(graph, str(error)) from None


class Decoder:
    """A graph with the names and shapes it was found to have.

    ``batch``, ``length`` and ``past`` are None where they are dynamic. ``cache_names``: of tensors
    with a row per token; ``state_names``: of those of one size, as the graph's inputs. Raises
    UserError for a graph that is not a decoder.
    """

    def __init__(self, graph: Path, threads: int | None = None, prepack: bool = True) -> None:
        self.graph = graph
        self._session = open_session(graph, threads, prepack)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}
        self.cache_names = [
            name.removeprefix(_PAST) for name in self._inputs if name.startswith(_PAST)
        ]
        self.state_names = [name for name in self._inputs if name.startswith(_PAST_STATE)]
        self._check_names()
        self.batch, self.length = _sizes(self._inputs[TOKENS])[:2]
        past = {_sizes(self._inputs[_PAST + name])[TOKEN_AXIS] for name in self.cache_names}
        if len(past) != 1:
            raise self._odd(f"its caches hold {sorted(map(str, past))} tokens")
        self.past = past.pop()

    def _check_names(self) -> None:
        required = {TOKENS, MASK, *(self._held.values())}
        made = {LOGITS, *map(_present, self._held.values())}
        unknown = self._inputs.keys() - required - {POSITIONS}
        missing = (required - self._inputs.keys()) | (made - self._outputs.keys())
        if unknown or missing or not self.cache_names:
            what = f"has the input {min(unknown)}" if unknown else f"lacks {min(missing | {_PAST})}"
            raise self._odd(f"it {what}")
        for name in self.cache_names:
            value = self._inputs[_PAST + name]
            if value.type not in _DTYPES or any(n is None for n in self.cache_shape(name)):
                raise self._odd(f"{value.name} is {value.type} {value.shape}")

        for name in self.state_names:
            value = self._inputs[name]
            if value.type not in _DTYPES or None in _sizes(value)[1:]:
                raise self._odd(f"{value.name} is {value.type} {value.shape}")

    @cached_property
    def _held(self) -> dict[str, str]:
        """Cache or state -> the input that takes it."""
        caches = {name: _PAST + name for name in self.cache_names}
        return caches | {name: name for name in self.state_names}

    def _odd(self, what: str) -> UserError:
        return UserError(
            f"{self.graph} is not a decoder with a cache: {what}",
            exported_again(self.graph.parent),
        )

    @cached_property
    def vocab_size(self) -> int | None:
        """Length of a row of logits, where the graph says it."""
        return _sizes(self._outputs[LOGITS])[-1]

    @cached_property
    def kv_type(self) -> str:
        """F32 or F16."""
        kinds = {_DTYPES[self._inputs[_PAST + name].type] for name in self.cache_names}
        return "F16" if np.float16 in kinds else "F32"

    def cache_shape(self, name: str, batch: int = 1, tokens: int = 0) -> tuple[int, ...]:
        """Shape of one cache tensor for ``tokens`` tokens of ``batch`` sequences."""
        shape = list(_sizes(self._inputs[_PAST + name]))
        shape[0], shape[TOKEN_AXIS] = batch, tokens
        return tuple(shape)  # type: ignore[arg-type]

    def zeros(self, batch: int = 1, tokens: int = 0) -> dict[str, Array]:
        """A cache of ``tokens`` empty places, and the states before the first token."""
        shapes = {name: self.cache_shape(name, batch, tokens) for name in self.cache_names}
        for name in self.state_names:
            shapes[name] = (batch, *(size or 0 for size in _sizes(self._inputs[name])[1:]))
        types = {name: _DTYPES[self._inputs[self._held[name]].type] for name in shapes}
        return {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}

    def run(
        self, tokens: Array, mask: Array, positions: Array, cache: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        """Logits [batch, length, vocab] float32, and what the graph gives back for every cache and
        state.

        ``tokens``, ``positions``: [batch, length]; ``mask``: [batch, past + length], 1 for what may
        be seen. ``cache``: numpy arrays or the values that an earlier call gave; no copy is made
        of either.
        """
        value = onnxruntime().OrtValue.ortvalue_from_numpy
        inputs = {TOKENS: tokens, MASK: mask, POSITIONS: positions}
        feeds = {
            name: value(np.ascontiguousarray(array, dtype=np.int64))
            for name, array in inputs.items()
            if name in self._inputs
        }
        for name, given in self._held.items():
            held = cache[name]
            feeds[given] = value(held) if isinstance(held, np.ndarray) else held
        names = [LOGITS, *map(_present, self._held.values())]
        logits, *present = self._session.run_with_ort_values(names, feeds)
        return logits.numpy().astype(np.float32, copy=False), dict(
            zip(self._held, present, strict=True)
        )


def _present(given: str) -> str:
    """The output of what the input ``given`` takes."""
    if given.startswith(_PAST_STATE):
        return _PRESENT_STATE + given.removeprefix(_PAST_STATE)
    return _PRESENT + given.removeprefix(_PAST)


def _sizes(value: Any) -> Shape:
    """The dimensions of an input or output, None where they are dynamic."""
    return tuple(n if isinstance(n, int) else None for n in value.shape)


def causal_inputs(
    tokens: Sequence[int], position: int, past: int, length: int, batch: int
) -> tuple[Array, Array, Array]:
    """(tokens, mask, positions) of ``length`` places per sequence for ``tokens`` at ``position``.

    The first ``position`` of ``past`` places in the cache hold tokens. What ``tokens`` does not
    fill is padding on the right: masked, and behind everything that counts.
    """
    ids = np.zeros((batch, length), np.int64)
    mask = np.zeros((batch, past + length), np.int64)
    positions = np.zeros((batch, length), np.int64)
    ids[:, : len(tokens)] = tokens
    mask[:, :position] = 1
    mask[:, past : past + len(tokens)] = 1
    positions[:, : len(tokens)] = np.arange(position, position + len(tokens))
    return ids, mask, positions


def left_padded_inputs(
    sequences: Sequence[Sequence[int]], length: int | None = None
) -> tuple[Array, Array, Array]:
    """(tokens, mask, positions) of a batch in which every sequence ends at the last place, of
    ``length`` places or as many as the longest has."""
    length = length or max(map(len, sequences))
    ids = np.zeros((len(sequences), length), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, length - len(tokens) :] = tokens
        mask[row, length - len(tokens) :] = 1
    return ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0)

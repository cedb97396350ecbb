"""An ONNX directory as a `Session`: `OnnxModel`.

Two kinds of graph, one interface. With dynamic shapes the cache grows: what the graph gives back as
present is its next past.

    model.onnx      past [batch, heads, past, size] -> present [batch, heads, past + length, size]

With fixed shapes (the convention of static mode) the cache has a fixed number of places that the
host fills, and a mask says which of them hold a token:

    prefill.onnx    length S, past P      attention_mask [batch, P + S]: first the P places of the
    decode.onnx     length 1, past P      cache, then the new tokens
                                          present [batch, heads, length, size]: the new tokens alone

Both graphs take the same cache of P places, so a prompt goes through prefill.onnx in chunks of S
(the last one padded on the right, its padding masked) and nothing is rearranged when decode.onnx
takes over. The host copies what is new into the next free places. New tokens see the cache as the
mask says and each other causally, which is a constant of the graph. That is what compilers for NPUs
like: no concatenation in the graph, no tensor of which the shape depends on the step, the smallest
possible output, and a cache whose places keep their address. A graph that gives the whole cache
back, [batch, heads, P + length, size], is taken too: its last places are the new tokens. The
context of such a directory is P + 1: the last token is never stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.onnx.decoder_session import (
    TOKEN_AXIS,
    Array,
    Decoder,
    causal_inputs,
    left_padded_inputs,
)
from tenp_edge.runtime.onnx.directory import DECODE, DYNAMIC, PREFILL, OnnxDirectory, read_directory
from tenp_edge.runtime.session import DEFAULT_CONTEXT, Logits, Session
from tenp_edge.runtime.slots import Part, Slot

# GroupQueryAttention counts positions from the cache's length.
_NO_LEFT_PADDING = "ort-cpu"


class OnnxModel(Session):
    """A directory with model.onnx, or prefill.onnx and decode.onnx, in onnxruntime on the CPU.

    ``context``: tokens the KV cache holds, None for `DEFAULT_CONTEXT` or what the model can do;
    ``ubatch``: tokens evaluated at once. ``prepack`` False takes less memory and more time (see
    `open_session`). Raises UserError for a directory that is incomplete or damaged, and for a
    context that the model or its graphs do not have.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        directory: str | Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        ubatch: int = 512,
        prepack: bool = True,
    ) -> None:
        self.files = read_directory(Path(directory))
        _check_positive(context=context, ubatch=ubatch)
        _check_positions(self.files, context)
        vocabulary = open_vocabulary(self.files.path)
        self._caches = _open_caches(self.files, threads, prepack)
        self.kv_type = self._caches.kv_type
        size = _fitting(self.files, context, self._caches.context)
        super().__init__(vocabulary, size, min(self._caches.length or ubatch, size))
        self._vocab_size = self._caches.vocab_size or self.files.number("vocab_size")

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def _run(self, parts: Sequence[Part], all_logits: bool) -> Logits:
        (part,) = parts
        rows = self._caches.run(part.tokens, part.slot.position)
        return rows if all_logits else rows[-1:]

    def _forget(self, slot: Slot, keep: int) -> None:
        self._caches.forget(keep)

    def _nearest(self, slot: Slot, keep: int) -> int:
        return keep if keep == slot.settled or not self._caches.carries_state else 0

    def padded_logits(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        """Logits [tokens, vocab] of every one of ``sequences``, in one call that pads them on the
        left to the longest. Raises UserError where the graph cannot do that."""
        if not self.files.facts.get("left_padding", self.files.mode != _NO_LEFT_PADDING):
            raise UserError(
                f"{self.files.mode} takes a token's position from the length of its sequence: "
                "padding on the left would shift it",
                "sequences of one length, or --mode portable",
            )
        return self._caches.padded(sequences)

    def close(self) -> None:
        """Free everything; harmless when called again."""
        self._caches = None  # type: ignore[assignment]


class _Caches(ABC):
    """The graphs with the cache of one sequence. ``context``: the most tokens it can hold, None
    when only the model limits it; ``length``: tokens at once, None when any number goes."""

    context: int | None
    length: int | None
    vocab_size: int | None
    kv_type: str

    @abstractmethod
    def run(self, tokens: Sequence[int], position: int) -> Logits:
        """Logits [tokens, vocab] of ``tokens``, which follow the first ``position`` in the cache;
        they are stored behind those."""

    @abstractmethod
    def padded(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        """As `OnnxModel.padded_logits`; the cache is not touched."""

    @abstractmethod
    def forget(self, keep: int) -> None:
        """Only the first ``keep`` tokens are still wanted."""

    @property
    def carries_state(self) -> bool:
        """Whether it can only go back to the start, since a state cannot be cut back."""
        return False


class _Growing(_Caches):
    """model.onnx: the cache is as long as the sequence."""

    context = length = None

    def __init__(self, graph: Decoder) -> None:
        self._graph = graph
        self._cache: dict[str, Any] = dict(graph.zeros())
        self.vocab_size, self.kv_type = graph.vocab_size, graph.kv_type

    def run(self, tokens: Sequence[int], position: int) -> Logits:
        inputs = causal_inputs(tokens, position, position, len(tokens), batch=1)
        logits, self._cache = self._graph.run(*inputs, self._cache)
        rows: Logits = logits[0]
        return rows

    def padded(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        inputs = left_padded_inputs(sequences)
        logits, _ = self._graph.run(*inputs, self._graph.zeros(len(sequences)))
        return [row[-len(tokens) :] for row, tokens in zip(logits, sequences, strict=True)]

    def forget(self, keep: int) -> None:
        for name in self._graph.cache_names:
            held = self._cache[name]
            array: Array = held if isinstance(held, np.ndarray) else held.numpy()
            if array.shape[TOKEN_AXIS] > keep:
                self._cache[name] = np.ascontiguousarray(array[..., :keep, :])
        if keep == 0:
            empty = self._graph.zeros()
            self._cache |= {name: empty[name] for name in self._graph.state_names}

    @property
    def carries_state(self) -> bool:
        return bool(self._graph.state_names)


class _Fixed(_Caches):
    """prefill.onnx and decode.onnx: a cache of P places, as the head of this file describes.

    A graph for several sequences gets the same one in every row.
    """

    def __init__(self, prefill: Decoder, decode: Decoder) -> None:
        for graph in (prefill, decode):
            if None in (graph.batch, graph.length, graph.past):
                raise UserError(f"{graph.graph} has dynamic shapes", "export it with --mode static")
        if (prefill.batch, prefill.past) != (decode.batch, decode.past) or decode.length != 1:
            raise UserError(
                f"{prefill.graph} has batch {prefill.batch} and past {prefill.past}, "
                f"{decode.graph.name} has batch {decode.batch}, past {decode.past} and length "
                f"{decode.length}",
                "export them together",
            )
        assert prefill.batch and prefill.length and prefill.past is not None
        self._prefill, self._decode = prefill, decode
        self._batch, self._past = prefill.batch, prefill.past
        self._cache = prefill.zeros(self._batch, self._past)
        self.context, self.length = self._past + 1, prefill.length
        self.vocab_size, self.kv_type = prefill.vocab_size, prefill.kv_type

    def run(self, tokens: Sequence[int], position: int) -> Logits:
        graph = self._decode if len(tokens) == 1 else self._prefill
        assert graph.length is not None
        inputs = causal_inputs(tokens, position, self._past, graph.length, self._batch)
        logits, present = graph.run(*inputs, self._cache)
        _store(self._cache, present, position, graph.length, len(tokens))
        rows: Logits = logits[0, : len(tokens)]
        return rows

    def padded(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        """As many rows at a time as the graphs have, all padded to the longest sequence."""
        size, logits = self._batch, []
        longest = max(map(len, sequences))
        if longest > self._past + 1:
            raise UserError(
                f"{longest} tokens are beyond the context of the graphs, {self._past + 1}",
                f"sequences of at most {self._past + 1} tokens",
            )
        for start in range(0, len(sequences), size):
            part = list(sequences[start : start + size])
            full = part + part[:1] * (size - len(part))
            rows = self._padded_rows(full, longest)
            logits += [row[-len(tokens) :] for row, tokens in zip(rows, part, strict=False)]
        return logits

    def _padded_rows(self, sequences: Sequence[Sequence[int]], length: int) -> Logits:
        """Logits [batch, length, vocab] of a full batch, in chunks through prefill.onnx."""
        ids, real, positions = left_padded_inputs(sequences, length)
        cache = self._prefill.zeros(self._batch, self._past)
        step, logits = self._prefill.length, []
        assert step is not None
        for start in range(0, length, step):
            count = min(step, length - start)
            place, short = slice(start, start + count), ((0, 0), (0, step - count))
            mask = np.zeros((self._batch, self._past + step), np.int64)
            mask[:, :start] = real[:, :start]
            mask[:, self._past : self._past + count] = real[:, place]
            chunk, at = np.pad(ids[:, place], short), np.pad(positions[:, place], short)
            rows, present = self._prefill.run(chunk, mask, at, cache)
            _store(cache, present, start, step, count)
            logits.append(rows[:, :count])
        whole: Logits = np.concatenate(logits, axis=1)
        return whole

    def forget(self, keep: int) -> None:
        """Places beyond the position are masked: nothing to do."""


def _store(
    cache: dict[str, Array], present: dict[str, Any], position: int, length: int, count: int
) -> None:
    """Copy the first ``count`` of ``length`` new tokens to the places from ``position`` on."""
    for name, made in present.items():
        new: Array = made.numpy()[..., -length:, :][..., :count, :]
        room = cache[name][..., position : position + count, :]
        room[...] = new[..., : room.shape[TOKEN_AXIS], :]


def _open_caches(files: OnnxDirectory, threads: int | None, prepack: bool) -> _Caches:
    if not files.static:
        graph = Decoder(files.path / DYNAMIC, threads, prepack)
        if (graph.batch, graph.length, graph.past) != (None, None, None):
            raise UserError(
                f"{graph.graph} has fixed shapes: batch {graph.batch}, length {graph.length}, "
                f"past {graph.past}",
                "export it with --mode static, which writes prefill.onnx and decode.onnx",
            )
        return _Growing(graph)
    prefill, decode = (Decoder(files.path / name, threads, prepack) for name in (PREFILL, DECODE))
    return _Fixed(prefill, decode)


def _check_positive(**choices: int | None) -> None:
    for name, value in choices.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}", f"--{name} of 1 or more")


def _check_positions(files: OnnxDirectory, context: int | None) -> None:
    if context is not None and context > files.positions:
        raise UserError(
            f"a context of {context} is beyond the model's {files.positions} positions",
            f"--context {files.positions}",
        )


def _fitting(files: OnnxDirectory, context: int | None, held: int | None) -> int:
    """The context: as asked for, else the default or as much of it as there is."""
    max_context = files.positions if held is None else min(held, files.positions)
    if context is not None and context > max_context:
        raise UserError(
            f"a context of {context} does not fit {files.path}, whose graphs are fixed: "
            f"{max_context - 1} tokens in the cache and the next one",
            f"--context {max_context}, or an export with --past {context - 1}",
        )
    return min(DEFAULT_CONTEXT, max_context) if context is None else context

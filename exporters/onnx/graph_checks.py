"""The ways that a decoder graph is run, each against torch on the very weights that it stores.

    prefill            all tokens at once
    cached decode      half of them, then one by one
    chunked prefill    a few at a time
    left padding       sequences of different lengths in one batch; graphs that are fixed to fewer
                       take them in turns, each padded to the longest

What differs is the graph's arithmetic alone, so an unquantised one stays below 1e-5; an int8 graph
rounds its activations too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from tenp_edge.checkpoint.source import WeightSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import GraphCheck, JudgeRequest
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.runtime.onnx.model import OnnxModel
from tenp_edge.runtime.session import Logits, Session

_LENGTHS = (48, 31, 17)
_CHUNK = 7
PREFILL, DECODE, CHUNKED, PADDED = (
    "prefill",
    "cached decode",
    "chunked prefill",
    "left padding",
)
Rows = Iterable[tuple[int, int, Logits]]  # (sequence, position, logits [vocab])


def sample(request: JudgeRequest) -> list[list[int]]:
    """Beginnings of a few of the request's sequences, of different lengths."""
    rows = zip(request.tokens.tolist(), request.lengths, _LENGTHS, strict=False)
    return [row[: min(length, max_length)] for row, length, max_length in rows]


def check_graph(
    request: JudgeRequest, model: OnnxModel, stored: WeightSource | None
) -> tuple[GraphCheck, ...]:
    """Every way against torch on the ``stored`` weights; against the graph's own prefill where
    those are not known."""
    sequences = sample(request)
    if stored is None:
        expected = [model.logits(tokens) for tokens in sequences]
    else:
        expected = _in_torch(request, stored, sequences)
    against = None if stored is not None else "against its own prefill"
    ways = {PREFILL: _prefill, DECODE: _decode, CHUNKED: _chunked, PADDED: _padded}
    checks = []
    for way, rows in ways.items():
        try:
            checks.append(GraphCheck(way, _error(rows(model, sequences), expected), against))
        except UserError as error:
            checks.append(GraphCheck(way, None, error.message))
    return tuple(checks)


def _in_torch(
    request: JudgeRequest, stored: WeightSource, sequences: Sequence[Sequence[int]]
) -> list[Logits]:
    rows = [torch.tensor(tokens) for tokens in sequences]
    padded = streaming_logits(
        stored,
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        device=request.device,
        dtype=torch.float32,
        progress=request.progress,
        work=request.scratch,
        name="graph check",
    )
    return [logits[: len(row)].numpy() for logits, row in zip(padded, rows, strict=True)]


def _prefill(model: Session, sequences: Sequence[Sequence[int]]) -> Rows:
    for number, tokens in enumerate(sequences):
        for position, logits in enumerate(model.logits(tokens)):
            yield number, position, logits


def _decode(model: Session, sequences: Sequence[Sequence[int]]) -> Rows:
    for number, tokens in enumerate(sequences):
        half = len(tokens) // 2
        yield from _parts(model, number, tokens, [half, *range(half + 1, len(tokens) + 1)])


def _chunked(model: Session, sequences: Sequence[Sequence[int]]) -> Rows:
    for number, tokens in enumerate(sequences):
        yield from _parts(model, number, tokens, [*range(_CHUNK, len(tokens), _CHUNK), len(tokens)])


def _parts(
    model: Session, number: int, tokens: Sequence[int], ends: Sequence[int]
) -> Iterator[tuple[int, int, Logits]]:
    """The logits after each part of ``tokens``, evaluated one after the other."""
    model.reset()
    for end in ends:
        yield number, end - 1, model.evaluate(tokens[model.position : end])


def _padded(model: OnnxModel, sequences: Sequence[Sequence[int]]) -> Rows:
    for number, rows in enumerate(model.padded_logits(sequences)):
        for position, logits in enumerate(rows):
            yield number, position, logits


def _error(rows: Rows, expected: Sequence[Logits]) -> float:
    """sqrt(sum of squared errors / sum of squared logits), in float64."""
    wrong = whole = 0.0
    for number, position, logits in rows:
        reference = expected[number][position].astype(np.float64)
        wrong += float(np.square(logits - reference).sum())
        whole += float(np.square(reference).sum())
    return float(np.sqrt(wrong / whole))

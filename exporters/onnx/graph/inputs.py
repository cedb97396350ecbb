"""Inputs of the graph and what every layer takes from them: the mask, the rotations, the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import BOOL, END, FLOAT, INT64, GraphBuilder
from tenp_edge.exporters.onnx.graph.cache import (
    CacheShape,
    cache_dims,
    past_inputs,
    state_dims,
    state_inputs,
)
from tenp_edge.exporters.onnx.graph.context import Fixed, Makers, Run
from tenp_edge.exporters.onnx.graph.rope import make_rotations
from tenp_edge.models import ModelConfig

_PATH = "/model/mask"


@dataclass(frozen=True)
class Lengths:
    """Dimensions of the inputs: names where they are free, numbers where they are fixed.

    ``kept`` tokens come out as present: the whole cache, or in a static graph the new ones.
    """

    batch: int | str = "batch_size"
    query: int | str = "sequence_length"
    past: int | str = "past_sequence_length"
    total: int | str = "total_sequence_length"
    kept: int | str = "total_sequence_length"
    fixed: Fixed | None = None

    @classmethod
    def of(cls, fixed: Fixed) -> Lengths:
        """Those of a static graph."""
        total = fixed.past + fixed.query
        return cls(fixed.batch, fixed.query, fixed.past, total, fixed.query, fixed)


def make_inputs(
    g: GraphBuilder,
    config: ModelConfig,
    caches: Mapping[int, CacheShape],
    lengths: Lengths,
    makers: Makers,
) -> tuple[ir.Value, Run]:
    """input_ids, attention_mask, position_ids and the cache; returns the ids and the `Run`."""
    ids = g.input("input_ids", INT64, [lengths.batch, lengths.query])
    attention = g.input("attention_mask", INT64, [lengths.batch, lengths.total])
    positions = g.input("position_ids", INT64, [lengths.batch, lengths.query])
    past = past_inputs(g, caches, lengths.batch, lengths.past)
    states = state_dims(config, lengths.batch)
    held = state_inputs(g, states)
    rotations = make_rotations(g, config, positions)
    masks: Mapping[int | None, ir.Value] = {}
    keys = None
    if makers.count_keys is not None and makers.counts_keys(config):
        keys = makers.count_keys(g, attention)
    elif lengths.fixed is None:
        windows = sorted({layer.window for layer in config.attention_layers if layer.window})
        masks = make_masks(g, ids, attention, windows)
    else:
        masks = {None: static_mask(g, attention, lengths.fixed)}
    return ids, Run(
        shape=_tokens_shape(g, ids, lengths.fixed),
        masks=masks,
        rotations=rotations,
        past=past,
        present={
            layer: cache_dims(cache, lengths.batch, lengths.kept) for layer, cache in caches.items()
        },
        caches=caches,
        states=held,
        state_dims=states,
        real=_real_tokens(g, ids, attention) if states else None,
        static=lengths.fixed,
        keys=keys,
    )


def _real_tokens(g: GraphBuilder, ids: ir.Value, attention: ir.Value) -> ir.Value:
    """float (batch, query, 1): 0 where a new token is padding."""
    path = "/model/real"
    first = g.op(path, "Neg", [g.op(path, "Shape", [ids], start=1, end=2)])
    new = g.op(path, "Slice", [attention, first, [END], [1]])
    return g.op(path, "Unsqueeze", [g.op(path, "Cast", [new], to=FLOAT), [2]])


def _tokens_shape(g: GraphBuilder, ids: ir.Value, fixed: Fixed | None) -> ir.Value | list[int]:
    """(batch, query, -1)."""
    if fixed is not None:
        return [fixed.batch, fixed.query, -1]
    shape = g.op("/model/shape", "Shape", [ids])
    return g.op("/model/shape", "Concat", [shape, [-1]], axis=0)


def make_masks(
    g: GraphBuilder, ids: ir.Value, attention: ir.Value, windows: Iterable[int]
) -> dict[int | None, ir.Value]:
    """bool (batch, 1, query, key): keys up to the query's own that are not padding, under None; and
    of those by window the ones that are not too far back.

    keys 0..total ──┬── LessOrEqual own ──────────────────── causal ──┐
    own key of each ┤                                                 And ── mask
    query, total -  └── Equal own ── self ──┐                         │
    query + 0, 1..      attention_mask ─────┴── Or ── not padding ────┘

    A query always sees itself: a softmax over nothing is NaN in some runtimes, and the rows of
    padding are nobody's keys anyway.
    """
    query = _length(g, f"{_PATH}/query", ids)
    total = _length(g, f"{_PATH}/total", attention)
    first = g.op(f"{_PATH}/own", "Sub", [total, query])
    query_index = g.op(f"{_PATH}/own", "Range", [first, total, 1])
    query_index = g.op(f"{_PATH}/own", "Unsqueeze", [query_index, [1]])  # (query, 1)
    keys = g.op(f"{_PATH}/keys", "Range", [0, total, 1])  # (key,)
    causal = g.op(f"{_PATH}/causal", "LessOrEqual", [keys, query_index])  # (query, key)
    itself = g.op(f"{_PATH}/itself", "Equal", [keys, query_index])
    real = g.op(f"{_PATH}/padding", "Cast", [attention], to=BOOL)
    real = g.op(f"{_PATH}/padding", "Unsqueeze", [real, [1, 2]])  # (batch, 1, 1, key)
    seen = g.op(_PATH, "Or", [real, itself])
    mask = g.op(_PATH, "And", [causal, seen])
    masks: dict[int | None, ir.Value] = {None: mask}
    for window in windows:
        path = f"{_PATH}/window_{window}"
        oldest = g.op(f"{path}/oldest", "Sub", [query_index, window - 1])
        near = g.op(f"{path}/near", "GreaterOrEqual", [keys, oldest])
        masks[window] = g.op(path, "And", [mask, near])
    return masks


# What is added to a score that does not count: its exponential is 0 in float32 and float16 alike,
# and float16, which NPUs compute in, can hold it.
_NEVER = 1e4


def static_mask(g: GraphBuilder, attention: ir.Value, fixed: Fixed) -> ir.Value:
    """float (batch, 1, query, key): 0 where a query may look, -10,000 elsewhere.

    attention_mask ── Cast ── Unsqueeze ── Mul earlier ── Add itself ── Sub 1 ── Mul 10,000

    Keys are the places of the cache, then the new tokens; ``earlier`` and ``itself`` are constants.
    A query always sees itself, see `make_masks`.
    """
    earlier = np.tri(fixed.query, fixed.past + fixed.query, fixed.past - 1, dtype=np.float32)
    itself = np.eye(fixed.query, fixed.past + fixed.query, fixed.past, dtype=np.float32)
    real = g.op(_PATH, "Cast", [attention], to=FLOAT)
    real = g.op(_PATH, "Unsqueeze", [real, [1, 2]])  # (batch, 1, 1, key)
    seen = g.op(f"{_PATH}/earlier", "Mul", [real, g.constant(earlier, f"{_PATH}/earlier")])
    seen = g.op(f"{_PATH}/itself", "Add", [seen, g.constant(itself, f"{_PATH}/itself")])
    missing = g.op(_PATH, "Sub", [seen, np.asarray(1, np.float32)])
    return g.op(_PATH, "Mul", [missing, np.asarray(_NEVER, np.float32)])


def _length(g: GraphBuilder, path: str, x: ir.Value) -> ir.Value:
    """The second dimension as a scalar."""
    shape = g.op(path, "Shape", [x], start=1, end=2)
    return g.op(path, "Squeeze", [shape])

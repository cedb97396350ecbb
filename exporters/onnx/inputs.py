"""Inputs of the graph and what every layer takes from them: the mask, the rotations, the cache."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import BOOL, INT64, GraphBuilder
from tenp_edge.exporters.onnx.cache import CacheShape, cache_dims, past_inputs
from tenp_edge.exporters.onnx.context import Run
from tenp_edge.exporters.onnx.rope import make_rotations
from tenp_edge.models import ModelConfig

_PATH = "/model/mask"


@dataclass(frozen=True)
class Lengths:
    """Dimensions of the inputs: names where they are free, numbers where they are fixed."""

    batch: int | str = "batch_size"
    query: int | str = "sequence_length"
    past: int | str = "past_sequence_length"
    total: int | str = "total_sequence_length"


def make_inputs(
    g: GraphBuilder, config: ModelConfig, cache: CacheShape, lengths: Lengths
) -> tuple[ir.Value, Run]:
    """input_ids, attention_mask, position_ids and the cache; returns the ids and the `Run`."""
    ids = g.input("input_ids", INT64, [lengths.batch, lengths.query])
    attention = g.input("attention_mask", INT64, [lengths.batch, lengths.total])
    positions = g.input("position_ids", INT64, [lengths.batch, lengths.query])
    past = past_inputs(g, config, *cache_dims(cache, lengths.batch, lengths.past))
    cos, sin = make_rotations(g, config, positions)
    mask = make_mask(g, ids, attention)
    present = cache_dims(cache, lengths.batch, lengths.total)
    return ids, Run(mask=mask, cos=cos, sin=sin, past=past, present=present)


def make_mask(g: GraphBuilder, ids: ir.Value, attention: ir.Value) -> ir.Value:
    """bool (batch, 1, query, key): keys up to the query's own that are not padding.

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
    own = g.op(f"{_PATH}/own", "Range", [first, total, 1])
    own = g.op(f"{_PATH}/own", "Unsqueeze", [own, [1]])  # (query, 1)
    keys = g.op(f"{_PATH}/keys", "Range", [0, total, 1])  # (key,)
    causal = g.op(f"{_PATH}/causal", "LessOrEqual", [keys, own])  # (query, key)
    itself = g.op(f"{_PATH}/itself", "Equal", [keys, own])
    real = g.op(f"{_PATH}/padding", "Cast", [attention], to=BOOL)
    real = g.op(f"{_PATH}/padding", "Unsqueeze", [real, [1, 2]])  # (batch, 1, 1, key)
    seen = g.op(_PATH, "Or", [real, itself])
    return g.op(_PATH, "And", [causal, seen])


def _length(g: GraphBuilder, path: str, x: ir.Value) -> ir.Value:
    """The second dimension as a scalar."""
    shape = g.op(path, "Shape", [x], start=1, end=2)
    return g.op(path, "Squeeze", [shape])

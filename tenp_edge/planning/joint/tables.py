"""What every choice of width and type costs, in bytes and in the one unit of loss.

A routed expert offers widths, types of gate and up, and types of down. Its loss is what cutting it
to the width costs (`LayerEvidence`) and, for the neurons that stay, what rounding them costs:
their sums (`rounding`) times the type's relative error. Neurons that are gone round nothing. Where
a file holds experts without neurons, an expert may lose all of them and keep its place in the
router: whole experts go where that is best. Every other matrix offers types. Losses of all tensors
add up, as errors that are independent do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenp_edge.calibration.coverage import MIN_TOKENS
from tenp_edge.exporters.mixing import Mixer, TypedMatrix
from tenp_edge.planning.joint.losses import Factors
from tenp_edge.planning.measured.rounding_errors import Errors, RoundingErrors
from tenp_edge.planning.scores.tables import Evidence, LayerEvidence
from tenp_edge.planning.space import Space

Array = NDArray[np.float64]
_FAR = 1e30  # the loss of what may not be chosen


@dataclass(frozen=True)
class ExpertTable:
    """Experts of one layer. ``cut`` [experts, widths]; ``gate_up`` and ``down`` [experts, widths,
    types]: losses. ``gate_up_bytes`` and ``down_bytes`` [widths, types]. ``weight``: how much the
    layer's losses count beside those of others while it is chosen."""

    layer: int
    weight: float
    cut: Array
    gate_up: Array
    down: Array
    gate_up_bytes: Array
    down_bytes: Array


@dataclass(frozen=True)
class OtherTable:
    """The matrices outside the routed experts: ``keys`` by row, ``loss`` and ``nbytes``
    [matrices, types]."""

    keys: tuple[str, ...]
    loss: Array
    nbytes: Array


@dataclass(frozen=True)
class Tables:
    """All that is to be chosen. ``widths`` (ascending, perhaps from 0; where 0 is there twice, the
    second gives the expert's mean output) and ``types``: what the columns are."""

    widths: tuple[int, ...]
    types: tuple[str, ...]
    experts: tuple[ExpertTable, ...]
    others: OtherTable

    @property
    def bare(self) -> int:
        """How many of the widths are 0."""
        return self.widths.count(0)


@dataclass(frozen=True)
class Pricing:
    """What matrices of a model take in its file: ``hidden`` is the width of the stream; ``gated``:
    experts have a gate beside up."""

    mixer: Mixer
    types: tuple[str, ...]
    hidden: int
    gated: bool = True

    def gate_up(self, widths: Sequence[int]) -> Array:
        """Of both, [widths, types]."""
        size, count = self.mixer.tensor_bytes, 2 if self.gated else 1
        rows = [[count * size(width, self.hidden, kind) for kind in self.types] for width in widths]
        return np.array(rows, dtype=np.float64)

    def down(self, widths: Sequence[int]) -> Array:
        size = self.mixer.tensor_bytes
        rows = [[size(self.hidden, width, kind) for kind in self.types] for width in widths]
        return np.array(rows, dtype=np.float64)

    def errors(self, found: Errors, columns: int) -> Array:
        """[types]: of rows of ``columns``, each in the type that they allow."""
        legal = (self.mixer.legal_type(kind, columns) for kind in self.types)
        return np.array([found.get(kind, _FAR) for kind in legal])


def expert_tables(
    evidence: Evidence,
    errors: RoundingErrors,
    pricing: Pricing,
    factors: Factors,
    widths: tuple[int, ...],
    unit: float = 0.0,
) -> list[ExpertTable]:
    """Of every MoE layer. ``widths``: as in `Tables`; ``unit``: losses count in this power of the
    stream's size, beside that of an ordinary layer."""
    sizes = pricing.gate_up(widths), pricing.down(widths)
    if widths[1:2] == (0,):
        sizes[1][1] = pricing.mixer.constant_bytes(pricing.hidden)
    streams = {layer: table.stream for layer, table in evidence.layers.items()}
    usual = float(np.exp(np.mean(np.log(list(streams.values())))))
    return [
        _layer_table(
            evidence, errors, pricing, factors, widths, layer, sizes, (stream / usual) ** (unit / 2)
        )
        for layer, stream in streams.items()
    ]


def _layer_table(
    evidence: Evidence,
    errors: RoundingErrors,
    pricing: Pricing,
    factors: Factors,
    widths: tuple[int, ...],
    layer: int,
    sizes: tuple[Array, Array],
    weight: float,
) -> ExpertTable:
    table = evidence.layers[layer]
    gate, up, down = evidence.rounding_sums(layer, widths)
    of = {part: errors.of_expert(layer, part) for part in ("gate", "up", "down")}
    by_gate, by_up = (pricing.errors(of[part], pricing.hidden) for part in ("gate", "up"))
    by_down = np.stack([pricing.errors(of["down"], width) for width in widths])
    both = gate[:, :, None] * by_gate + up[:, :, None] * by_up
    losses = [
        cut_costs(table, evidence.space, widths, factors.unseen),
        both * factors.groups["gate_up"],
        down[:, :, None] * by_down * factors.groups["down"],
    ]
    idle = table.tokens.numpy() == 0
    if idle.any():
        plain = [not pricing.mixer.needs_importance(kind) for kind in pricing.types]
        losses = [_for_idle(loss, idle, np.array(plain)) for loss in losses]
    cut, gate_up, down_loss = losses
    if widths[0] == 0:
        taken_off = evidence.statistics.means(layer)[1].numpy() if widths[1:2] == (0,) else None
        cut = _emptied(cut, table.tokens.numpy(), taken_off)
    return ExpertTable(layer, weight, cut, gate_up, down_loss, *sizes)


def _cut_columns(cuts: Array, widths: tuple[int, ...]) -> Array:
    """[experts, widths], of losses of no neuron and of the legal widths, [experts, 1 + legal]."""
    bare = widths.count(0)
    return cuts[:, [0] * bare + list(range(1, 1 + len(widths) - bare))]


def cut_costs(table: LayerEvidence, space: Space, widths: tuple[int, ...], unseen: float) -> Array:
    """What cutting each expert costs, [experts, widths].

    As far as the text is too short to judge experts by, it costs what cutting as large a part of
    the layer's mean expert would if all its neurons did as much: losses have the weight
    sqrt(tokens / MIN_TOKENS), of the mean over the experts (limited fluctuation credibility;
    Mowbray 1914). ``unseen``, of all experts together, comes on top.
    """
    cuts = table.insured.numpy()
    losses = _cut_columns(cuts, widths)
    trust = min(1.0, math.sqrt(float(table.tokens.mean()) / MIN_TOKENS))
    share = 1 - np.array(widths, dtype=np.float64) / space.full
    evenly = (1 - trust) * cuts[:, 0].mean() + unseen / space.total_experts
    made: Array = trust * losses + evenly * share
    return made


def _emptied(cut: Array, tokens: Array, taken_off: Array | None) -> Array:
    """``cut`` with the widths of 0 out of reach of experts that hardly a token reached. A constant
    takes off the loss of the second what it does."""
    cut = cut.copy()
    few, bare = tokens < MIN_TOKENS, 1
    if taken_off is not None:
        cut[:, 1], bare = np.maximum(cut[:, 1] - taken_off, 0), 2
    cut[few, :bare] = _FAR
    return cut


def _for_idle(loss: Array, idle: NDArray[np.bool_], plain: NDArray[np.bool_]) -> Array:
    """Experts that no token reached count like the layer's middle one: no evidence is not a low
    score. They take types that need no importance matrix."""
    loss = loss.copy()
    reached = loss[~idle]
    loss[idle] = np.median(reached, axis=0) if len(reached) else 0.0
    if loss.ndim == 3:
        loss[np.ix_(idle, np.arange(loss.shape[1]), ~plain)] = _FAR
    return loss


def other_table(
    matrices: Sequence[TypedMatrix],
    errors: RoundingErrors,
    pricing: Pricing,
    factors: Factors,
) -> OtherTable:
    """Of the matrices outside the routed experts."""
    losses, sizes = [], []
    for matrix in matrices:
        *rows, columns = matrix.shape
        found = errors.of_other(matrix.layer, matrix.role) or {}
        losses.append(pricing.errors(found, columns) * factors.groups.get(matrix.role, 1.0))
        count = int(np.prod(rows))
        sizes.append([pricing.mixer.tensor_bytes(count, columns, kind) for kind in pricing.types])
    keys = tuple(matrix.key for matrix in matrices)
    shape = (len(keys), len(pricing.types))
    return OtherTable(keys, np.reshape(losses, shape), np.array(sizes, dtype=float).reshape(shape))

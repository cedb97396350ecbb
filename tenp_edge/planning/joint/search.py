"""The cheapest loss for a number of bytes: widths and types of everything in one search. Pure.

At a price per byte every tensor chooses for itself what costs least, loss plus price times bytes,
and all that are chosen so at one price are the best plan of their bytes (Lagrange): the lower
convex hulls of all tensors, bought by loss per byte. The price is bisected. What is left over is
given to the steps that the next lower price would take; where a large matrix (the embeddings) is
such a step, the experts share out what is left beside it. Of every layer one expert keeps neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tenp_edge.planning.joint.tables import Array, ExpertTable, Tables

Indices = NDArray[np.int64]
_CLOSE = 1e-5  # of logarithms of prices: where their bisection ends
_AROUND = 2.0  # of the logarithm of a price: where another is looked for beside a pinned matrix
_SPARE = 1e-3  # of the bytes: so few may be left over
_NEAR = 0.4  # of the logarithm of a price: where a pair should be of use, too
_HIGHEST, _LOWEST = 1e6, 1e-30  # of a price: loss per byte


@dataclass(frozen=True)
class Chosen:
    """Indices into widths and types. ``width``, ``gate_up``, ``down`` [layers, experts]; ``other``
    [matrices]. ``cut_loss`` and ``type_loss``: of all together; ``nbytes`` of all these matrices.
    """

    width: Indices
    gate_up: Indices
    down: Indices
    other: Indices
    cut_loss: float
    type_loss: float
    nbytes: float

    @property
    def loss(self) -> float:
        return self.cut_loss + self.type_loss


class JointSearch:
    """Choices for the ``tables`` of one model. ``one_type``: the experts of a layer agree on their
    types and all experts on their width, for files that stack them. ``alike``: gate, up and down of
    an expert agree on their type; of such pairs of a width and a type the whole model may have
    ``most`` different ones (None: any number)."""

    def __init__(
        self,
        tables: Tables,
        one_type: bool = False,
        alike: bool = False,
        most: int | None = None,
    ) -> None:
        self.tables, self.one_type, self.most = tables, one_type, most
        self._layers = [_Layer(table, tables.bare, alike=alike) for table in tables.experts]

    def within(self, nbytes: float) -> Chosen | None:
        """The least loss within ``nbytes``; None where the smallest choice is larger."""
        if self.most is not None:
            return self._of_few_pairs(nbytes, self.most)
        if not self.one_type:
            return self._within(self._layers, nbytes)
        found = [self._within(layers, nbytes) for layers in self._of_one_width()]
        fitting = [chosen for chosen in found if chosen is not None]
        return min(fitting, key=lambda chosen: chosen.loss, default=None)

    @property
    def smallest(self) -> Chosen:
        """The fewest bytes that there are."""
        if not self.one_type:
            return self._at(self._layers, _HIGHEST)
        found = (self._at(layers, _HIGHEST) for layers in self._of_one_width())
        return min(found, key=lambda chosen: chosen.nbytes)

    @property
    def largest(self) -> Chosen:
        """What loses least, whatever the bytes."""
        found = self.within(np.inf)
        assert found is not None
        return found

    def losses(self, chosen: Chosen) -> tuple[Array, Array]:
        """Of the experts of each layer, [layers], and of each other matrix, [matrices]."""
        rows = zip(self._layers, chosen.width, chosen.gate_up, chosen.down, strict=True)
        experts = [float(layer.of(*choice)[0].sum()) for layer, *choice in rows]
        others = self.tables.others.loss[np.arange(len(chosen.other)), chosen.other]
        return np.array(experts), others

    def priced(self, width: Indices, gate_up: Indices, down: Indices, other: Indices) -> Chosen:
        """Losses and bytes of a choice that was made elsewhere."""
        return self._chosen(self._layers, width, gate_up, down, other)

    def _of_one_width(self) -> Iterator[list[_Layer]]:
        for width in range(len(self.tables.widths)):
            yield [_Layer(table, 0, width) for table in self.tables.experts]

    def _of_few_pairs(self, nbytes: float, most: int) -> Chosen | None:
        """Of the pairs that all together lose least near the price of these bytes."""
        smallest, largest = (self._at(self._layers, price) for price in (_HIGHEST, _LOWEST))
        if smallest.nbytes > nbytes:
            return None
        bracket = float(np.log(_LOWEST)), float(np.log(_HIGHEST))
        price = bracket[0]
        if largest.nbytes > nbytes:
            *_, price = self._nearest(self._layers, smallest, largest, nbytes, bracket)
        prices = [float(np.exp(price + offset)) for offset in (-_NEAR, 0.0, _NEAR)]
        losses = np.concatenate([layer.pairs(prices) for layer in self._layers], axis=1)
        sizes = self._layers[0].pair_bytes
        if most == 1:
            least_others = self.tables.others.nbytes.min(axis=1).sum()
            fits = losses.shape[1] * sizes + least_others <= nbytes
            allowed = np.array([np.where(fits, losses.sum(axis=(0, 1)), np.inf).argmin()])
        else:
            allowed = few(losses, most, int(np.argmin(sizes)))
        return self._within([layer.limited(allowed) for layer in self._layers], nbytes)

    def _within(self, layers: list[_Layer], nbytes: float) -> Chosen | None:
        smallest = self._at(layers, _HIGHEST)
        if smallest.nbytes > nbytes:
            return None
        largest = self._at(layers, _LOWEST)
        if largest.nbytes <= nbytes:
            return largest
        bracket = float(np.log(_LOWEST)), float(np.log(_HIGHEST))
        fitting, above, price = self._nearest(layers, smallest, largest, nbytes, bracket)
        found = self._filled(layers, fitting, above, nbytes)
        if nbytes - found.nbytes <= _SPARE * nbytes:
            return found
        pinned = (self._beside(layers, one.other, nbytes, price) for one in (fitting, above))
        return min((found, *filter(None, pinned)), key=lambda chosen: chosen.loss)

    def _beside(
        self, layers: list[_Layer], other: Indices, nbytes: float, price: float
    ) -> Chosen | None:
        """The best experts beside ``other`` matrices, near a ``price`` (its logarithm); None where
        none fit."""
        low, high = price - _AROUND, price + _AROUND
        above, fitting = (self._at(layers, float(np.exp(edge)), other) for edge in (low, high))
        if fitting.nbytes > nbytes:
            return None
        if above.nbytes <= nbytes:
            return above
        fitting, above, _ = self._nearest(layers, fitting, above, nbytes, (low, high), other)
        return self._filled(layers, fitting, above, nbytes)

    def _nearest(
        self,
        layers: list[_Layer],
        fitting: Chosen,
        above: Chosen,
        nbytes: float,
        bracket: tuple[float, float],
        other: Indices | None = None,
    ) -> tuple[Chosen, Chosen, float]:
        """The choices at the lowest price that fits, and just below it; that price's logarithm,
        which is within the ``bracket``."""
        low, high = bracket
        while high - low > _CLOSE:
            middle = (low + high) / 2
            found = self._at(layers, float(np.exp(middle)), other)
            if found.nbytes <= nbytes:
                high, fitting = middle, found
            else:
                low, above = middle, found
            if found.nbytes == nbytes:
                break
        return fitting, above, high

    def _at(self, layers: list[_Layer], price: float, other: Indices | None = None) -> Chosen:
        """What everything chooses at ``price``, loss per byte, beside ``other`` where that is
        pinned."""
        width, gate_up, down = (
            np.stack(rows) for rows in zip(*(layer.at(price) for layer in layers), strict=True)
        )
        others = self.tables.others
        if other is None:
            other = (others.loss + price * others.nbytes).argmin(axis=1)
        return self._chosen(layers, width, gate_up, down, other)

    def _chosen(
        self, layers: list[_Layer], width: Indices, gate_up: Indices, down: Indices, other: Indices
    ) -> Chosen:
        cut = typed = nbytes = 0.0
        for layer, *choice in zip(layers, width, gate_up, down, strict=True):
            losses, sizes = layer.of(*choice)
            cut, typed = cut + float(losses[0].sum()), typed + float(losses[1].sum())
            nbytes += float(sizes.sum())
        rows = np.arange(len(other))
        typed += float(self.tables.others.loss[rows, other].sum())
        nbytes += float(self.tables.others.nbytes[rows, other].sum())
        return Chosen(width, gate_up, down, other, cut, typed, nbytes)

    def _filled(
        self, layers: list[_Layer], fitting: Chosen, above: Chosen, nbytes: float
    ) -> Chosen:
        """``fitting`` with as many of the steps to ``above`` as there is room for, those that take
        off most loss per byte first."""
        left = nbytes - fitting.nbytes
        width, gate_up, down = (a.copy() for a in (fitting.width, fitting.gate_up, fitting.down))
        other = fitting.other.copy()
        steps = [*self._expert_steps(layers, fitting, above), *self._other_steps(fitting, above)]
        for step in sorted(steps, key=lambda step: -step.gain / step.nbytes):
            if step.nbytes > left:
                continue
            left -= step.nbytes
            if step.layer is None:
                other[step.index] = above.other[step.index]
                continue
            for mine, theirs in (
                (width, above.width),
                (gate_up, above.gate_up),
                (down, above.down),
            ):
                mine[step.layer, step.index] = theirs[step.layer, step.index]
        return self._chosen(layers, width, gate_up, down, other)

    def _expert_steps(
        self, layers: list[_Layer], fitting: Chosen, above: Chosen
    ) -> Iterator[_Step]:
        """Of every expert, or of a layer's together where they agree."""
        for number, layer in enumerate(layers):
            losses, sizes = zip(
                *(
                    layer.of(c.width[number], c.gate_up[number], c.down[number])
                    for c in (fitting, above)
                ),
                strict=True,
            )
            cut, typed = losses[0] - losses[1]
            gains = (cut + typed) * layer.table.weight
            more = sizes[1] - sizes[0]
            every = np.arange(len(more))
            for index in [every] if self.one_type else every[:, None]:
                if more[index].sum() > 0:
                    yield _Step(float(gains[index].sum()), float(more[index].sum()), number, index)

    def _other_steps(self, fitting: Chosen, above: Chosen) -> Iterator[_Step]:
        others, rows = self.tables.others, np.arange(len(fitting.other))
        more = others.nbytes[rows, above.other] - others.nbytes[rows, fitting.other]
        gains = others.loss[rows, fitting.other] - others.loss[rows, above.other]
        for index in rows[more > 0, None]:
            yield _Step(float(gains[index].sum()), float(more[index].sum()), None, index)


def few(losses: Array, most: int, least: int) -> Indices:
    """At most ``most`` pairs, ``least`` among them, ascending; ``losses``: [prices, experts,
    pairs]. From all of them, that is taken out time and again whose experts lose least by going to
    the next best."""
    if losses.shape[-1] <= most:
        return np.arange(losses.shape[-1])
    rows = losses.reshape(-1, losses.shape[-1]).copy()
    every, left = np.arange(len(rows)), np.ones(rows.shape[1], dtype=bool)
    best = np.argpartition(rows, 1, axis=1)[:, :2]  # and the next best
    while left.sum() > most:
        first, second = rows[every, best[:, 0]], rows[every, best[:, 1]]
        dearer = np.bincount(best[:, 0], second - first, len(left))
        dearer[~left] = dearer[least] = np.inf
        out = dearer.argmin()
        left[out], rows[:, out] = False, np.inf
        moved = (best == out).any(axis=1)
        best[moved] = np.argpartition(rows[moved], 1, axis=1)[:, :2]
    return np.flatnonzero(left)


@dataclass(frozen=True)
class _Step:
    """A dearer choice of some experts of a layer, or (None) of another matrix."""

    gain: float
    nbytes: float
    layer: int | None
    index: Indices


class _Layer:
    """One layer's experts, the first ``bare`` of whose widths are 0; with ``width`` all of that
    one, and of one type each matrix; ``alike``: the matrices of each expert are of one type."""

    def __init__(
        self, table: ExpertTable, bare: int, width: int | None = None, *, alike: bool = False
    ) -> None:
        self.table, self.bare, self.width, self.alike = table, bare, width, alike
        self.experts = np.arange(len(table.cut))

    @property
    def pair_bytes(self) -> Array:
        """Of an expert of each pair of a width and a type, [pairs]."""
        return (self.table.gate_up_bytes + self.table.down_bytes).ravel()

    def pairs(self, prices: Sequence[float]) -> Array:
        """What each pair costs every expert at each of the prices, in units of all layers,
        [prices, experts, pairs]."""
        table = self.table
        loss = table.weight * (table.cut[:, :, None] + table.gate_up + table.down)
        flat = loss.reshape(len(loss), -1)
        return np.stack([flat + price * self.pair_bytes for price in prices])

    def limited(self, allowed: Indices) -> _Layer:
        """The same with the ``allowed`` pairs alone."""
        gate_up = np.full_like(self.table.gate_up, np.inf)
        width, kind = np.unravel_index(allowed, gate_up.shape[1:])
        gate_up[:, width, kind] = self.table.gate_up[:, width, kind]
        return _Layer(replace(self.table, gate_up=gate_up), self.bare, alike=self.alike)

    def at(self, price: float) -> tuple[Indices, Indices, Indices]:
        """Widths, types of gate and up, types of down that cost least, [experts] each."""
        table, price = self.table, price / self.table.weight
        if self.width is not None:
            return self._alike(price, self.width)
        gate_up = table.gate_up + price * table.gate_up_bytes
        down = table.down + price * table.down_bytes
        if self.alike:
            by_gate_up = by_down = (gate_up + down).argmin(axis=2)
            total = table.cut + (gate_up + down).min(axis=2)
        else:
            by_gate_up, by_down = gate_up.argmin(axis=2), down.argmin(axis=2)
            total = table.cut + gate_up.min(axis=2) + down.min(axis=2)
        width = total.argmin(axis=1)
        bare = self.bare
        if (width < bare).all():
            kept = (total[:, bare:].min(axis=1) - total[:, :bare].min(axis=1)).argmin()
            width[kept] = bare + total[kept, bare:].argmin()
        return width, by_gate_up[self.experts, width], by_down[self.experts, width]

    def _alike(self, price: float, width: int) -> tuple[Indices, Indices, Indices]:
        table, count = self.table, len(self.experts)
        gate_up = table.gate_up[:, width].sum(axis=0) + price * count * table.gate_up_bytes[width]
        down = table.down[:, width].sum(axis=0) + price * count * table.down_bytes[width]
        same = np.ones(count, dtype=np.int64)
        return same * width, same * gate_up.argmin(), same * down.argmin()

    def of(self, width: Indices, gate_up: Indices, down: Indices) -> tuple[Array, Array]:
        """Losses [2, experts], of the cut and of the types, and bytes [experts]."""
        table, every = self.table, self.experts
        typed = table.gate_up[every, width, gate_up] + table.down[every, width, down]
        sizes = table.gate_up_bytes[width, gate_up] + table.down_bytes[width, down]
        return np.stack([table.cut[every, width], typed]), sizes

"""Widths from a budget of neurons: uniform, trapezoid, whole-expert removal, free. Pure.

All experts of a model have the same shape, so a share of routed-expert parameters is a share of
neurons, and budgets are counted in neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.planning.space import Space


@dataclass(frozen=True)
class Trapezoid:
    """``whole`` experts stay whole in the entire model, every other one is ``narrow`` wide."""

    whole: int
    narrow: int

    def neurons(self, space: Space) -> int:
        return self.whole * space.full + (space.total_experts - self.whole) * self.narrow


@dataclass(frozen=True)
class Shape:
    """How whole experts are shared out along depth: a weight that is linear from ``shallow`` to
    ``deep``, times a bump that is ``middle`` at mid-depth and 1 at both ends (below 1: a U)."""

    shallow: float = 1.0
    deep: float = 2.0
    middle: float = 1.0

    def weights(self, layers: int) -> list[float]:
        """The weight of each of ``layers`` layers, shallow to deep."""
        depths = [0.5] if layers == 1 else [i / (layers - 1) for i in range(layers)]
        return [
            (self.shallow + (self.deep - self.shallow) * d)
            * (1 + (self.middle - 1) * 4 * d * (1 - d))
            for d in depths
        ]


def uniform(space: Space, neurons: int) -> Widths:
    """ENP: the widest legal width for every expert within ``neurons``."""
    width = space.floor(neurons / space.total_experts)
    return dict.fromkeys(space.layers, (width,) * space.experts)


def trapezoid(space: Space, neurons: int, whole_share: float) -> Trapezoid:
    """TENP: about ``whole_share`` of the experts whole, and as many as fit in ``neurons``.

    beta = (rho - alpha) / (1 - alpha) is rounded to a legal width (at most the one that would fit
    with no whole expert at all); then whole experts are added or taken away until one more would
    not fit.
    """
    count = space.total_experts
    if neurons >= space.total_neurons or not space.cut_widths:
        return Trapezoid(count if neurons >= space.total_neurons else 0, space.legal_widths[0])
    whole = round_half_up(whole_share * count)
    beta = (neurons - whole * space.full) / max(count - whole, 1)
    nearest = min(space.cut_widths, key=lambda width: (abs(width - beta), width))
    narrow = min(nearest, max(space.floor(neurons / count), space.cut_widths[0]))
    return Trapezoid(max(0, (neurons - count * narrow) // (space.full - narrow)), narrow)


def pinned_trapezoid(space: Space, neurons: int, whole_share: float) -> Trapezoid:
    """TENP with exactly round(alpha * experts) whole: the widest beta that fits in ``neurons``."""
    count = space.total_experts
    whole = round_half_up(whole_share * count)
    if whole >= count or not space.cut_widths:
        return Trapezoid(whole, space.legal_widths[0])
    beta = (neurons - whole * space.full) / (count - whole)
    return Trapezoid(whole, max((w for w in space.cut_widths if w <= beta), default=space.multiple))


def whole_counts(weights: Sequence[float], total: int, max_count: int) -> list[int]:
    """``total`` whole experts shared out by ``weights``, largest remainders first.

    0 <= count <= ``max_count`` in every layer; what a full layer cannot take goes to the others in
    proportion to their weights. The counts sum exactly to ``total``.
    """
    assert 0 <= total <= max_count * len(weights)
    counts, open_layers, left = [0] * len(weights), list(range(len(weights))), total
    while left:
        mass = sum(weights[i] for i in open_layers)
        share = {i: weights[i] / mass if mass else 1 / len(open_layers) for i in open_layers}
        capped = [i for i in open_layers if share[i] * left >= max_count]
        if not capped:
            for index, extra in zip(open_layers, _round(list(share.values()), left), strict=True):
                counts[index] = extra
            return counts
        for index in capped:
            counts[index] = max_count
        open_layers = [i for i in open_layers if i not in capped]
        left = total - sum(counts)
    return counts


def _round(shares: Sequence[float], total: int) -> list[int]:
    """Largest remainder: integers near ``shares`` * total that sum to ``total``."""
    exact = [share * total for share in shares]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def trapezoid_widths(
    space: Space, plan: Trapezoid, counts: Sequence[int], ranking: Mapping[int, Sequence[int]]
) -> Widths:
    """The first ``counts[i]`` experts of each layer's ``ranking`` whole, the others narrow."""
    widths = {}
    for layer, count in zip(space.layers, counts, strict=True):
        whole = set(ranking[layer][:count])
        widths[layer] = tuple(
            space.full if expert in whole else plan.narrow for expert in range(space.experts)
        )
    return widths


def drop_count(experts: int, keep: float, top_k: int, groups: int, topk_group: int) -> int:
    """Experts that whole-expert removal keeps in every layer: round(r E), at least top-k.

    A router with groups keeps the same number in each (so the nearest such count), at least two
    (a group is scored by its best two) and enough for top-k among the groups it may choose.
    """
    if groups == 1:
        return min(max(round(keep * experts), top_k), experts)
    min_in_group = max(2, -(-top_k // topk_group))
    return groups * min(max(round(keep * experts / groups), min_in_group), experts // groups)


def drop(space: Space, kept: int, ranking: Mapping[int, Sequence[int]], groups: int = 1) -> Widths:
    """Whole-expert removal: the ``kept`` best experts of every layer, evenly over its groups."""
    size = space.experts // groups
    widths = {}
    for layer in space.layers:
        chosen: set[int] = set()
        for group in range(groups):
            members = [expert for expert in ranking[layer] if expert // size == group]
            chosen |= set(members[: kept // groups])
        widths[layer] = tuple(space.full if e in chosen else 0 for e in range(space.experts))
    return widths


def free(
    space: Space, neurons: int, gains: torch.Tensor, min_levels: torch.Tensor | None = None
) -> torch.Tensor:
    """Every expert its own legal width by the marginal gain of its next step; int64 [experts].

    ``gains`` [experts, legal widths]: value of keeping an expert's best neurons at that width,
    over as many experts as share one ranking (a layer's or the model's). ``min_levels`` (indices
    into the legal widths, default 0) is where each expert starts. Steps are taken in the order of
    gain per neuron and skipped when they do not fit, each expert's in sequence.
    """
    legal = torch.tensor(space.legal_widths)
    level = [0] * len(gains) if min_levels is None else min_levels.tolist()
    left = neurons - int(legal[level].sum())
    sizes = legal.diff().tolist()
    # A wider step can be worth more per neuron than the one before it (signed scores): a running
    # minimum keeps every expert's steps in sequence.
    steps = (gains.diff(dim=1) / legal.diff()).cummin(dim=1).values
    for flat in steps.flatten().argsort(descending=True, stable=True).tolist():
        expert, step = divmod(flat, len(sizes))
        if level[expert] == step and sizes[step] <= left:
            level[expert] += 1
            left -= sizes[step]
    return legal[level]


def limit_widths(widths: Widths, max_widths: int) -> Widths:
    """``widths`` with at most ``max_widths`` different ones; removed experts (0) do not count.

    Every width that goes becomes the next smaller one that stays. Which ones stay is the choice
    that loses the fewest neurons (dynamic programming over the sorted widths).
    """
    flat = [width for row in widths.values() for width in row if width]
    sizes, counts = torch.unique(torch.tensor(flat), return_counts=True)
    if len(sizes) <= max_widths:
        return widths
    kept = _best_levels(sizes, counts, max_widths)
    below = {w: max(k for k in kept if k <= w) for w in sizes.tolist()} | {0: 0}
    return {layer: tuple(below[width] for width in row) for layer, row in widths.items()}


def _best_levels(sizes: torch.Tensor, counts: torch.Tensor, max_levels: int) -> list[int]:
    """``max_levels`` of the ascending ``sizes``, the smallest among them, that lose the least.

    loss[i, j]: neurons lost when sizes i up to j become sizes[i]. best[j]: the least loss of the
    first j sizes with as many levels as rounds so far.
    """
    number = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    neurons = torch.cat([counts.new_zeros(1), (counts * sizes).cumsum(0)])
    loss = neurons[None, :] - neurons[:-1, None] - sizes[:, None] * (number - number[:-1, None])
    ends, starts = torch.arange(len(sizes) + 1), torch.arange(len(sizes))
    loss = torch.where(ends > starts[:, None], loss.double(), torch.inf)
    best, came = loss[0], []
    for _ in range(max_levels - 1):
        step = (best[:-1, None] + loss).min(dim=0)
        best = step.values
        came.append(step.indices)
    kept, end = [0], len(sizes)
    for indices in reversed(came):
        end = int(indices[end])
        kept.append(end)
    return [int(sizes[index]) for index in kept]


# How often the neurons that a limit of widths leaves over are offered again.
_OFFERS = 4


def limited(make: Callable[[int], Widths], neurons: int, max_widths: int | None) -> Widths:
    """``make(neurons)`` with at most ``max_widths`` different widths, within ``neurons``.

    What rounding down leaves over is asked for again, while the result stays within.
    """
    widths = make(neurons)
    if max_widths is None:
        return widths
    widths = limit_widths(widths, max_widths)
    budget = neurons
    for _ in range(_OFFERS):
        budget += neurons - sum(map(sum, widths.values()))
        wider = limit_widths(make(budget), max_widths)
        if not sum(map(sum, widths.values())) < sum(map(sum, wider.values())) <= neurons:
            break
        widths = wider
    return widths


def round_half_up(value: float) -> int:
    """The nearest whole number, halves upwards (a count of experts, never negative)."""
    return math.floor(value + 0.5)

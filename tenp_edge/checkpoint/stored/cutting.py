"""Rows and columns of a quantised matrix, taken as they are stored: nothing is decoded.

Which of them can go without the others, the rules of the layout's parts say: an entry that is for
one row or column goes alone, one that is for several (a block's scale, a group's) with all of
these, and of codes in a word that is for rows alone a new word is made.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tenp_edge.models.layouts import Layout, PartRule
from tenp_edge.models.mixers import Shape

_WORD_BITS = 32
SHAPE = "shape"  # the part that says the sizes of the matrix itself
Kept = torch.Tensor | None
"""[n], ascending within each matrix that is stacked: the rows (or columns) that stay; None: all."""


def cut_shape(shape: Shape, rows: Kept, columns: Kept) -> Shape:
    """Of the matrix that is left of one of ``shape``."""
    return tuple(
        size if kept is None else len(kept)
        for size, kept in zip(shape, (rows, columns), strict=True)
    )


def cut_part_shapes(
    layout: Layout, shape: Shape, stored: Mapping[str, Shape], rows: Kept, columns: Kept
) -> dict[str, Shape] | None:
    """The shapes of the parts ``stored`` of a matrix of ``shape`` after the cut; None where one of
    them cannot be cut so, or the layout has no such matrix."""
    rules = layout.rules(shape)
    if not all(_can_go(rules[part], rows, columns) for part in stored):
        return None
    left = layout.rules(cut_shape(shape, rows, columns))
    shapes = {part: _left_of(shape, rules[part], rows, columns) for part, shape in stored.items()}
    fits = all(shapes[part] in left[part].shapes for part in stored)
    return shapes if fits else None


def cut_part(
    part: str, tensor: torch.Tensor, rule: PartRule, rows: Kept, columns: Kept
) -> torch.Tensor:
    """What is left of ``tensor``, the ``part`` of a matrix that can be cut so."""
    if part == SHAPE:
        sizes = cut_shape(tuple(tensor.tolist()), rows, columns)
        return torch.tensor(sizes, dtype=tensor.dtype)
    for dim, kept, step in _dims(rule, rows, columns):
        if dim >= tensor.ndim:  # one number for all
            continue
        if step > 1 and rule.lanes and dim == int(rule.transposed):
            tensor = _repacked(tensor, dim, kept, rule.lanes)
        else:
            tensor = tensor.index_select(dim, kept[::step] // step)
    return tensor.contiguous()


def _dims(rule: PartRule, rows: Kept, columns: Kept) -> list[tuple[int, torch.Tensor, int]]:
    """(dimension of the part, kept, how many of them an entry is for) where entries go."""
    dims = []
    for dim, kept, step in ((0, rows, rule.rows), (1, columns, rule.columns)):
        if kept is not None and step:
            dims.append((1 - dim if rule.transposed else dim, kept, step))
    return dims


def _can_go(rule: PartRule, rows: Kept, columns: Kept) -> bool:
    if columns is not None and rule.columns is None:
        return False
    row_dim = int(rule.transposed)
    return all(
        _is_whole(kept, step) or (bool(rule.lanes) and dim == row_dim)
        for dim, kept, step in _dims(rule, rows, columns)
    )


def _is_whole(kept: torch.Tensor, step: int) -> bool:
    """Whether ``kept`` is groups of ``step``, whole and each from its begin; the last may end
    before its end, as a matrix may."""
    first = kept[::step]
    places = torch.arange(len(kept)) % step
    whole = first.repeat_interleave(step)[: len(kept)] + places
    return bool((first % step == 0).all()) and torch.equal(whole, kept)


def _left_of(stored: Shape, rule: PartRule, rows: Kept, columns: Kept) -> Shape:
    sizes = list(stored)
    for dim, kept, step in _dims(rule, rows, columns):
        if dim < len(sizes):
            sizes[dim] = -(-len(kept) // step)
    return tuple(sizes)


def _repacked(
    words: torch.Tensor, dim: int, kept: torch.Tensor, lanes: tuple[int, ...]
) -> torch.Tensor:
    """Words of a code for each row along ``dim``, of the rows ``kept`` alone."""
    bits = _WORD_BITS // len(lanes)
    places = bits * torch.tensor(lanes)
    spread = words.movedim(dim, -1).long() & 2**_WORD_BITS - 1
    codes = (spread.unsqueeze(-1) >> places & (1 << bits) - 1).flatten(-2)[..., kept]
    codes = torch.nn.functional.pad(codes, (0, -len(kept) % len(lanes)))
    codes = codes.reshape(*codes.shape[:-1], -1, len(lanes))
    # A long's low half, whatever its sign, is the word.
    joined: torch.Tensor = (codes << places).sum(-1).to(words.dtype)
    return joined.movedim(-1, dim)

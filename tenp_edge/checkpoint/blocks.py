"""ggml's blocks in memory: they decode to several times their size, in little time.

So matrices and layers that would not fit decoded are kept as they are stored, and decoded a few
rows or one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models.layouts import StoredWeight
from tenp_edge.runtime.gguf.header import GGML_TYPES

_LAYOUT = "ggml"
_HELD_BYTES = 2 * 2**30


def held_rows(checkpoint: Checkpoint, name: str) -> Callable[[int, int], torch.Tensor] | None:
    """Matrix ``name`` in memory as blocks, as a function of (start, stop) that decodes those rows;
    None of one that is stored in another way."""
    weight = checkpoint.weights.get(name)
    if weight is None or not _is_blocks(weight) or weight.row_step != 1:
        return None
    return partial(checkpoint.holding(weight.tensors.values()).read_rows, name)


def held_layer(checkpoint: Checkpoint, layer: int) -> Checkpoint:
    """``checkpoint`` with a layer's experts in memory as they are stored, if not too many."""
    weights = _experts_of(checkpoint, layer)
    if sum(map(checkpoint.stored_bytes, weights)) > _HELD_BYTES:
        return checkpoint
    return checkpoint.holding(t for weight in weights for t in weight.tensors.values())


def _experts_of(checkpoint: Checkpoint, layer: int) -> Sequence[StoredWeight]:
    """What the experts of ``layer`` are stored as."""
    if layer in checkpoint.stacked:
        return checkpoint.stacked[layer].weights
    config = checkpoint.config
    names = (config.expert_tensors(layer, e) for e in range(len(config.expert_widths[layer])))
    return [checkpoint.weights[name] for expert in names for name in expert]


def down_block(checkpoint: Checkpoint) -> int:
    """How many of an expert's neurons share a block of its down matrix, 1 where each has numbers of
    its own."""
    names = (checkpoint.config.expert_tensor(x, 0, -1) for x in checkpoint.config.moe_layers)
    weights = [weight for name in names if (weight := checkpoint.weights.get(name))]
    kinds = (
        kind
        for weight in weights
        if _is_blocks(weight)
        for kind in weight.layout.facts["types"].values()
    )
    return lcm(*(GGML_TYPES[kind][1] for kind in kinds))


def _is_blocks(weight: StoredWeight) -> bool:
    return weight.layout.name == _LAYOUT

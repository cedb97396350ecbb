"""ggml's blocks in memory: they decode to several times their size, in little time.

So matrices and layers that would not fit decoded are kept as they are stored, and decoded a few
rows or one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import lcm

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models import PROJECTIONS
from tenp_edge.models.layouts import StoredWeight
from tenp_edge.runtime.gguf.header import GGML_TYPES

_LAYOUT = "ggml"
_KEPT_BYTES = 2**30
_DOWN = PROJECTIONS.index("down")


def held_rows(checkpoint: Checkpoint, name: str) -> Callable[[int, int], torch.Tensor] | None:
    """Matrix ``name`` in memory as blocks, as a function of (start, stop) that decodes those rows;
    None of one that is stored in another way."""
    weight = checkpoint.weights.get(name)
    if weight is None or not _is_blocks(weight) or not weight.row_step:
        return None
    return partial(checkpoint.holding(weight.tensors.values()).read_rows, name)


def held_layer(checkpoint: Checkpoint, layer: int) -> Checkpoint:
    """``checkpoint`` with the experts of ``layer`` in memory, as they are stored."""
    config = checkpoint.config
    names = (config.expert_tensors(layer, e) for e in range(len(config.expert_widths[layer])))
    weights = [checkpoint.weights[name] for expert in names for name in expert]
    return checkpoint.holding(t for weight in weights for t in weight.tensors.values())


def fits_decoded(checkpoint: Checkpoint) -> bool:
    """Whether a layer's experts may lie in memory decoded; always where they are no blocks."""
    config = checkpoint.config
    first = checkpoint.weights.get(config.expert_tensor(config.moe_layers[0], 0, 0))
    neurons = max(sum(widths) for widths in config.expert_widths.values())
    size = neurons * len(PROJECTIONS) * config.hidden_size * checkpoint.dtype.itemsize
    return first is None or not _is_blocks(first) or size <= _KEPT_BYTES


def down_block(checkpoint: Checkpoint) -> int:
    """How many of an expert's neurons share a block of its down matrix, 1 where each has numbers of
    its own."""
    names = (checkpoint.config.expert_tensor(x, 0, _DOWN) for x in checkpoint.config.moe_layers)
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

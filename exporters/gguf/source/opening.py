"""A GGUF file opened as a model to start from: config and weights, and nothing that is guessed.

The metadata that tenp-edge would write of the config that was found is compared with the file's: a
key that says something else, or that nothing was made of, is refused, as one of config.json is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tenp_edge.errors import UserError, shown
from tenp_edge.exporters.gguf.architectures import architecture
from tenp_edge.exporters.gguf.fields import header
from tenp_edge.exporters.gguf.metadata import Recipe, model_fields
from tenp_edge.exporters.gguf.source.facts import config_json, read_told
from tenp_edge.exporters.gguf.source.parts import open_parts
from tenp_edge.exporters.gguf.source.told import Told
from tenp_edge.exporters.gguf.source.weights import read_weights
from tenp_edge.exporters.gguf.types import FILE_TYPES
from tenp_edge.models import FAMILIES, ModelConfig, read_config
from tenp_edge.models.layouts import WEIGHT_DTYPES
from tenp_edge.models.other_formats import OpenedSource
from tenp_edge.runtime.gguf.file_origin import LAYOUT, OWN
from tenp_edge.runtime.gguf.header import MAGIC, Value, parse_header

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CLOSE = 1e-5
# Keys that may say otherwise than we would: of the cut, of layers that are left out, of pictures
# (`metadata._sections`), or what the tensors say anyway.
_OWN_AFFAIR = frozenset(
    "block_count vocab_size feed_forward_length expert_feed_forward_length expert_shared_count "
    "expert_shared_feed_forward_length nextn_predict_layers rope.dimension_sections "
    "attention.head_count_kv attention.recurrent_layers full_attention_interval".split()
)
# Keys of latent attention in files from before llama.cpp absorbed kv_b.
_HEADS = frozenset(("attention.key_length", "attention.value_length"))
# Keys that tenp-edge does not write, and the values that change nothing.
_NEUTRAL: dict[str, tuple[Value, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "expert_gating_func": (1,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.type": ("none",),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "attention.sliding_window": (0,),
    "use_parallel_residual": (True, False),
}


def open_source(path: Path) -> OpenedSource | None:
    """The model in ``path``, the first of its files if it is split; None where it is no GGUF."""
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return None
    parts = open_parts(path)
    told = read_told(parts)
    kinds = {placed.info.type_name for placed in parts.tensors.values()}
    raw = config_json(told) | {"dtype": _dtype(kinds)}
    config = read_config(raw, FAMILIES)
    _check(told, config)
    return OpenedSource(config, *read_weights(parts, config))


def _dtype(kinds: set[str]) -> str:
    """What the weights are read in: what they are, where that is one kind of numbers (vectors are
    F32 everywhere); float32 holds whatever is decoded."""
    matrices = kinds - {"F32"}
    one = len(matrices) == 1 and matrices <= set(WEIGHT_DTYPES)
    return _DTYPES[matrices.pop()] if one else "float32"


def _check(told: Told, config: ModelConfig) -> None:
    """Raise UserError where the file says what ``config`` does not."""
    ours = _our_fields(config)
    prefix = f"{told.prefix}."
    for full_key, value in told.parts.header.fields.items():
        key = full_key.removeprefix(prefix)
        if full_key.startswith(prefix) and not _agrees(told, key, value, ours):
            raise UserError(
                f"{told.parts.path.name}: {full_key} is {shown(str(value))}, which a model of "
                f"{config.family.model_type} is not known to have",
                "the checkpoint that the file was made from",
            )


def _our_fields(config: ModelConfig) -> dict[str, Value]:
    """The metadata of the model by key, as it would be written: in the layout with most keys."""
    fields = model_fields(config, LAYOUT, FILE_TYPES["F32"].file_type, Recipe())
    data = header(fields, [])
    prefix = f"{OWN}{architecture(config).name}."
    named = parse_header(data, len(data)).fields
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def _agrees(told: Told, key: str, value: Value, ours: dict[str, Value]) -> bool:
    older = told.row.graph.mla and not told.has("attention.key_length_mla")
    if key in _OWN_AFFAIR or (older and key in _HEADS):
        return True
    if key in ours:
        return _same(value, ours[key])
    return any(_same(value, neutral) for neutral in _NEUTRAL.get(key, ()))


def _same(one: Value, other: Value) -> bool:
    """Whether two values are the same number, list of numbers, or text."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    first, second = (np.asarray(list(_numbers(value)), dtype=np.float64) for value in (one, other))
    if first.size == 1 or second.size == 1:  # one number for all layers
        first, second = np.broadcast_arrays(first, second)
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=_CLOSE, atol=0))


def _numbers(value: Value) -> Iterator[float]:
    if isinstance(value, np.ndarray):
        yield from value.astype(np.float64).tolist()
    elif isinstance(value, int | float):
        yield float(value)

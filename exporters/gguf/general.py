"""The ``general.*`` fields that name a model, as llama.cpp's converter writes them.

gguf-py's heuristics read the model card, config.json (``_name_or_path``), generation_config.json
and the directory's name. Two things are ours: a pruned model's size label is of what is left, and
its base model is the one that was pruned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import gguf

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.model_origin import CARD, base_model, card_data, words
from tenp_edge.exporters.gguf.fields import Field, f32, i32, text, texts, u32
from tenp_edge.models import ModelConfig

_OURS = ("general.architecture", "general.file_type", "general.quantization_version")
_FLOAT_TYPES = (0, 1, 32)  # general.file_type of F32, F16 and BF16: nothing is quantised
_BY = "tenp-edge"
_SEVERAL = ("tags", "pipeline_tag", "languages", "language", "license")
_ORIGINS = (
    *("base_model", "base_models", "base_model_sources"),
    *("dataset", "datasets", "dataset_sources"),
)
_READ = (CARD, "config.json", "generation_config.json")


def general_fields(checkpoint: Checkpoint, config: ModelConfig, file_type: int) -> list[Field]:
    """Name, sizes, licence and origin of ``config``, the model of ``checkpoint`` as it is written;
    in the converter's order. Of a file, its name alone: its own metadata stays."""
    if checkpoint.is_file:
        return [("general.name", text(checkpoint.path.stem))]
    stamps = tuple(_stamp(checkpoint.path / name) for name in _READ)
    label, is_whole = _size_label(checkpoint, config), _is_whole(checkpoint, config)
    parameters = _parameters(checkpoint)
    return list(_named(checkpoint.path, stamps, parameters, label, is_whole, file_type))


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _is_whole(checkpoint: Checkpoint, config: ModelConfig) -> bool:
    pruned_before = bool(config.raw.get("tenp"))
    return not pruned_before and config.expert_weights == checkpoint.config.expert_weights


@lru_cache(maxsize=2)
def _parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(weight.shape) for weight in checkpoint.weights.values())


def _size_label(checkpoint: Checkpoint, config: ModelConfig) -> str:
    """ "30B-A3.3B": all parameters of ``config``, and those that a token uses."""
    total = _parameters(checkpoint) - checkpoint.config.expert_weights + config.expert_weights
    idle = config.expert_weights * (config.num_experts - config.num_experts_per_tok)
    active = total - idle // config.num_experts
    return "-A".join(map(gguf.utility.model_weight_count_rounded_notation, (total, active)))


@lru_cache(maxsize=16)
def _named(
    path: Path,
    stamps: Sequence[object],
    parameters: int,
    label: str,
    is_whole: bool,
    file_type: int,
) -> tuple[Field, ...]:
    """``parameters``: of the checkpoint; ``label``: the size of what is written."""
    del stamps  # part of the key only: changed files are read again
    with _silent():
        found = _heuristics(path, parameters)
    if not is_whole:
        found.size_label = label
        _set_base(found, path)
    found.size_label = found.size_label or label
    if file_type not in _FLOAT_TYPES:
        found.quantized_by = _BY
    return tuple(_encoded(found))


def _heuristics(path: Path, parameters: int) -> gguf.Metadata:
    """`gguf.Metadata.load`, told the hub id where the directory's name is none (a hub cache calls
    it by its revision), and not stopped by a card that is not well formed."""
    raw = gguf.Metadata.load_hf_parameters(path)
    stated = base_model(path, raw)
    named = path.resolve() if stated is None else Path(stated.split("/")[-1])
    card = _clean(card_data(path))
    if isinstance(raw.get("tenp"), dict):
        named, card = _before_pruning(named, card, raw["tenp"])
    raw = raw if stated is None else {**raw, "_name_or_path": stated}
    found = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, raw, named, parameters)
    for key, value in _sampling(path).items():
        setattr(found, key, value)
    found.name = found.name or named.name
    return found


def _before_pruning(
    named: Path, card: dict[str, Any], section: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """The name and the card of the model that a checkpoint of ours was made of, as far as it keeps
    them: a file made of the checkpoint says the same as one made of the model."""
    own = ("model_name", "tags", "pipeline_tag")
    kept = {key: value for key, value in card.items() if key not in own}
    return Path(card.get("model_name", named.name)), kept | {"tags": words(section.get("tags"))}


def _clean(card: dict[str, Any]) -> dict[str, Any]:
    """The front matter with words where the heuristics read words."""
    several = {key: words(card[key]) for key in _SEVERAL if key in card}
    one = {key: str(value) for key, value in card.items() if isinstance(value, (str, int, float))}
    origins = {key: card[key] for key in _ORIGINS if isinstance(card.get(key), list)}
    return one | origins | several


# The converter's names of what generation_config.json may say.
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def _sampling(path: Path) -> dict[str, float | int]:
    config = gguf.Metadata.load_generation_config(path)
    if not isinstance(config, dict):
        return {}
    found: dict[str, float | int] = {}
    for name, key in _SAMPLING.items():
        value = config.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"sampling_{key}"] = int(value) if name == "top_k" else float(value)
    return found


def _set_base(found: gguf.Metadata, path: Path) -> None:
    """The base of a pruned model is the model that was pruned, where it has a name on the hub."""
    stated = base_model(path, gguf.Metadata.load_hf_parameters(path))
    if stated is None:
        return
    found.base_models = None
    gguf.Metadata.apply_metadata_heuristic(found, {"base_model": stated})


def _encoded(found: gguf.Metadata) -> Iterator[Field]:
    """What gguf-py's own writer would write of ``found``, in its order."""
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(value, list) and not value:
            setattr(found, field.name, None)
    with _silent():
        writer = gguf.GGUFWriter(None, "")
        found.set_gguf_meta_model(writer)
    for key, value in writer.kv_data[0].items():
        if key not in _OURS:
            yield key, _ENCODERS[value.type](value.value)


_ENCODERS: dict[Any, Callable[[Any], bytes]] = {
    gguf.GGUFValueType.STRING: lambda value: text(str(value)),
    gguf.GGUFValueType.UINT32: u32,
    gguf.GGUFValueType.INT32: i32,
    gguf.GGUFValueType.FLOAT32: f32,
    gguf.GGUFValueType.ARRAY: lambda values: texts(map(str, values)),
}


@contextmanager
def _silent() -> Iterator[None]:
    """Without gguf-py's remarks."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)

"""A statistics file against what it says of itself, before anything is planned with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.models.headers import StoredTensor

_SIZES = ("experts", "width", "hidden", "seq_len")
_COUNTS = ("samples", "tokens")
_MOST = 2**40
_DTYPES = ("F64", "I64", "F32", "I32", "F16", "BF16")


def check_info(file: Path, info: Mapping[str, Any]) -> None:
    """Raise UserError where a field of statistics.json is missing or of another type."""
    fits = {name: _is_count(info.get(name), 1) for name in _SIZES}
    fits["fingerprint"] = isinstance(info.get("fingerprint"), str)
    fits["layers"] = _are_layers(info.get("layers"))
    domains = info.get("domains")
    fits["domains"] = (
        isinstance(domains, dict) and bool(domains) and all(map(_is_domain, domains.values()))
    )
    for name, fitting in fits.items():
        if not fitting:
            raise _damaged(file, f"'{name}' is missing or malformed")


def check_model(file: Path, info: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise UserError where statistics.json gives the model other sizes than it has."""
    sizes = {
        "layers": list(config.moe_layers),
        "experts": config.num_experts,
        "width": config.moe_intermediate_size,
        "hidden": config.hidden_size,
    }
    for name, size in sizes.items():
        if info[name] != size:
            raise _damaged(file, f"'{name}' is not the model's")


def check_tensors(
    file: Path, stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise UserError where a ``wanted`` tensor is missing or has another shape."""
    for name, shape in wanted.items():
        entry = stored.get(name)
        if entry is None or entry.dtype not in _DTYPES or entry.shape != shape:
            raise _damaged(file, f"{name} of the shape {list(shape)} is not there")


def _are_layers(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(_is_count(layer, 0) for layer in value) and value == sorted(set(value))


def _is_domain(counts: Any) -> bool:
    return isinstance(counts, dict) and all(_is_count(counts.get(key), 0) for key in _COUNTS)


def _is_count(value: Any, minimum: int) -> bool:
    return type(value) is int and minimum <= value < _MOST


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} is damaged: {why}", "calibrate again")

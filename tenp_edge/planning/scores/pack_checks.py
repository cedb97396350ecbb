"""What a score file says of itself, checked before anything is made of it: it may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.calibration.statistics_checks import check_info, check_model
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig

PACK_AGAIN = "the file as it was packed, or --calibration with the statistics themselves"

Array = npt.NDArray[Any]
_MOST = 2**40


def damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} is damaged: {what}", PACK_AGAIN)


def check_packed(file: Path, packed: Mapping[str, Any], config: ModelConfig | None) -> None:
    """Raise UserError where a field of scores.json is missing or of another type, or the sizes are
    not those of ``config``'s model."""
    fits = {name: _is_count(packed.get(name)) for name in ("multiple", "choices")}
    fits |= {
        name: isinstance(packed.get(name), bool) for name in ("has_elimination", "has_rounding")
    }
    fits["slice"] = "slice" in packed and isinstance(packed["slice"], str | None)
    variants = packed.get("variants")
    fits["variants"] = isinstance(variants, list) and all(isinstance(v, dict) for v in variants)
    for name, fitting in fits.items():
        if not fitting:
            raise damaged(file, f"'{name}' is missing or malformed")
    _check_statistics(file, packed["statistics"], config)


def check_array(name: str, array: Array, packed: Mapping[str, Any]) -> None:
    """Raise ValueError where ``array`` cannot be the one that `write_pack` writes as ``name``."""
    wanted = _shapes(packed).get(name.rpartition("/")[2], array.shape[1:])
    if array.shape[array.ndim - len(wanted) :] != wanted or array.ndim > len(wanted) + 1:
        raise ValueError(f"{name} has the shape {array.shape}")
    if array.dtype.kind == "f" and bool(np.isnan(array).any()):
        raise ValueError(f"{name} holds what is no number")


def _shapes(packed: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The last dimensions of each array, whatever its layer. A cut to every width has a loss, and
    every width but none a gain."""
    experts, width = packed["statistics"]["experts"], packed["statistics"]["width"]
    steps = -(-width // packed["multiple"])
    return {
        "losses": (experts, steps + 1),
        "insured": (experts, steps + 1),
        "gains": (experts, steps),
        "steps": (experts, width),
        "stream": (1,),
        **dict.fromkeys(("tokens", "ranking", "peaks", "mean_taken_off"), (experts,)),
        "mean_neurons": (experts, width),
        "activation_sq": (experts, width),
        "input_sq": (experts, packed["statistics"]["hidden"]),
    }


def _check_statistics(file: Path, info: Mapping[str, Any], config: ModelConfig | None) -> None:
    try:
        check_info(file, info)
        if config is not None:
            check_model(file, info, config)
    except UserError as error:  # whose hint is to calibrate again, which this file spares
        raise UserError(error.message, PACK_AGAIN) from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < _MOST

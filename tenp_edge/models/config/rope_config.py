"""What config.json says of the rotary embedding, in either spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.config.attention_config import FULL, SLIDING
from tenp_edge.models.config.reader import (
    BELONGS,
    MOST,
    ConfigReader,
    contradiction,
    finite,
    malformed,
    refuse,
)
from tenp_edge.models.family import Family
from tenp_edge.models.model_config import Rope

_ROPE_KINDS = ("default", "linear", "yarn")
_PROPORTIONAL = "proportional"
_ROPE_KEYS = frozenset(
    "type rope_type rope_theta factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate partial_rotary_factor".split()
)

# Of families that divide a head's frequencies among time, height and width.
_SECTIONS, _INTERLEAVED = "mrope_section", "mrope_interleaved"


def rope_by_layer_type(config: ConfigReader, family: Family) -> dict[str, Rope]:
    """The rotary embedding by type of layer; one for all but where the family has two."""
    raw = config.raw
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    stated = config.value("rope_parameters", "rope_scaling", default={})
    if not isinstance(stated, dict):
        raise UserError(f"config.json: {key} is {stated!r}, not an object", BELONGS)
    if family.layer_keys is None:
        return dict.fromkeys((FULL, SLIDING), _rope(config, key, stated, _ROPE_KINDS))
    if set(stated) != {FULL, SLIDING} or not all(isinstance(v, dict) for v in stated.values()):
        raise malformed(key, stated, f"an object of {FULL} and {SLIDING}")
    kinds = {FULL: (*_ROPE_KINDS, _PROPORTIONAL), SLIDING: _ROPE_KINDS}
    return {kind: _rope(config, f"{key}.{kind}", stated[kind], kinds[kind]) for kind in kinds}


def _rope(config: ConfigReader, key: str, stated: Mapping[str, Any], kinds: Sequence[str]) -> Rope:
    scaling = dict(stated)
    if config.family.rope_sections:
        scaling.pop(_SECTIONS, None)
        if scaling.pop(_INTERLEAVED, None) not in (None, True):
            raise refuse(f"{key}.{_INTERLEAVED} = {stated[_INTERLEAVED]!r}", "True")
    unknown = sorted(set(scaling) - _ROPE_KEYS)
    if unknown:
        raise refuse(f"rope key {', '.join(unknown)}", ", ".join(sorted(_ROPE_KEYS)))
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    stated_theta = scaling.pop("rope_theta", None)
    theta = config.value("rope_theta") if stated_theta is None else stated_theta
    if kind not in kinds:
        raise refuse(f"rope type {kind!r}", ", ".join(kinds))
    part = 1.0
    if kind == _PROPORTIONAL:
        _check_proportional(key, scaling)
    else:
        part = _rotary_part(config, scaling.pop("partial_rotary_factor", None))
    _check_scaling(key, kind, scaling)
    return Rope(theta=finite("rope_theta", theta), kind=kind, scaling=scaling, part=part)


def rope_sections(config: ConfigReader) -> Any:
    """The division of a head's frequencies, among the rope's keys or beside them."""
    stated = config.value("rope_parameters", "rope_scaling", default={})
    return stated.get(_SECTIONS) or config.value(_SECTIONS)


def _rotary_part(config: ConfigReader, stated: object) -> float:
    """The share of a head that is rotated, as ``stated`` among the rope's keys or beside them."""
    usual, beside = config.family.rotary_part, config.value("partial_rotary_factor")
    if stated is not None and beside is not None and stated != beside:
        raise contradiction(f"partial_rotary_factor is {beside} and {stated}")
    said = stated if stated is not None else beside
    part = finite("partial_rotary_factor", usual if said is None else said)
    if part > 1 or (part != 1 and usual == 1):
        raise refuse(f"partial_rotary_factor = {part}", "1.0")
    return part


def _check_proportional(section: str, scaling: Mapping[str, Any]) -> None:
    """The first pairs of a head turn, the rest stands: which part turns, and at no other scale."""
    if scaling.get("factor") not in (None, 1, 1.0):
        raise refuse(f"{section}.factor = {scaling['factor']} of the type proportional", "1.0")
    part = scaling.get("partial_rotary_factor")
    if part is not None and not 0 < finite(f"{section}.partial_rotary_factor", part) <= 1:
        raise malformed(f"{section}.partial_rotary_factor", part, "a share of a head")


def _check_scaling(section: str, kind: str, scaling: Mapping[str, Any]) -> None:
    """Linear and YaRN scaling need a factor; whatever else is there must be a number."""
    for key, value in scaling.items():
        if value is not None and key != "truncate":
            finite(f"{section}.{key}", value, zero=True)
    original = scaling.get("original_max_position_embeddings")
    if original is not None and (not isinstance(original, int) or not 0 < original <= MOST):
        raise malformed(f"{section}.original_max_position_embeddings", original, "a length")
    factor = scaling.get("factor")
    if kind in ("default", _PROPORTIONAL):
        return
    if factor is None:
        raise contradiction(f"{section} of the type {kind} has no factor")
    if factor < 1:
        raise malformed(f"{section}.factor", factor, "1 or more")

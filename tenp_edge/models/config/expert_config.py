"""What config.json says of experts: the layers that route, groups, the width of each expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.config.mixer_config import EXPERTS, layer_kinds
from tenp_edge.models.config.reader import (
    BELONGS,
    ConfigReader,
    contradiction,
    finite,
    malformed,
)
from tenp_edge.models.family import Family


def moe_layers_of(config: ConfigReader, family: Family, layers: int) -> tuple[int, ...]:
    """Which decoder layers route: transformers' rules for dense-first and sparse-step models."""
    if EXPERTS in family.layer_kinds.values():
        kinds = enumerate(layer_kinds(config, family, layers))
        alone = tuple(layer for layer, kind in kinds if kind == EXPERTS)
        if not alone:
            raise _no_routed_layer()
        return alone
    types = config.value("mlp_layer_types")
    if types is not None:
        return _sparse_layers(types, layers)
    dense_first = config.integer("first_k_dense_replace", "moe_layer_start_index", default=0)
    step = config.integer("decoder_sparse_step", "moe_layer_interval", default=1)
    dense = config.layers("mlp_only_layers")
    chosen = tuple(
        layer
        for layer in range(_end_of_routed(config, layers))
        if layer >= dense_first and layer not in dense and (layer + 1) % step == 0
    )
    if not chosen:
        raise _no_routed_layer()
    return chosen


def _end_of_routed(config: ConfigReader, layers: int) -> int:
    """The layer from which on none routes; -1 as the last that does is the model's last."""
    last = config.value("moe_layer_end_index", default=-1)
    if type(last) is not int or not -1 <= last < layers:
        raise malformed("moe_layer_end_index", last, f"-1 or a layer of {layers}")
    return layers if last == -1 else last + 1


def _sparse_layers(types: object, layers: int) -> tuple[int, ...]:
    """The layers that a list of "dense" and "sparse" calls sparse."""
    kinds = ("dense", "sparse")
    if not isinstance(types, list) or not all(kind in kinds for kind in types):
        raise malformed("mlp_layer_types", types, "a list of dense and sparse")
    if len(types) != layers:
        raise contradiction(f"mlp_layer_types has {len(types)} layers, the model has {layers}")
    chosen = tuple(layer for layer, kind in enumerate(types) if kind == "sparse")
    if not chosen:
        raise _no_routed_layer()
    return chosen


def _no_routed_layer() -> UserError:
    return UserError("config.json leaves no layer with routed experts", BELONGS)


def check_groups(experts: int, groups: int, chosen: int, top_k: int) -> None:
    """Groups of experts must divide them, and hold as many as are chosen."""
    if experts % groups:
        raise contradiction(f"{experts} experts do not divide into {groups} groups")
    if chosen > groups:
        raise contradiction(f"topk_group is {chosen}, there are {groups} groups")
    within = experts // groups * chosen
    if top_k > within:
        raise contradiction(
            f"{chosen} of {groups} groups hold {within} experts, num_experts_per_tok is {top_k}"
        )


def shared_width(config: ConfigReader, family: Family, width: int) -> int:
    """Width of the shared expert, 0 without."""
    if family.shared_block is None:
        return 0
    if family.shared_width_key is not None:
        return config.integer(family.shared_width_key, default=0)
    if family.shared_gated:
        return config.integer("shared_expert_intermediate_size", default=0)
    return width * config.integer("n_shared_experts", "moe_num_shared_experts", default=0)


def expert_widths(
    raw: Mapping[str, Any], moe_layers: tuple[int, ...], experts: int, width: int
) -> dict[int, tuple[int, ...]]:
    """Uniform, unless a ``tenp`` section (a checkpoint pruned by this tool) lists the widths."""
    section = raw.get("tenp")
    if section is None:
        return dict.fromkeys(moe_layers, (width,) * experts)
    try:
        pruned = section["expert_widths"].items()
        widths = {int(layer): tuple(int(w) for w in row) for layer, row in pruned}
        finite("tenp.keep_ratio", section.get("keep_ratio", 1.0))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError("config.json: the tenp section is malformed", BELONGS) from None
    # An expert of width 0 is one without neurons that keeps its place in the router.
    legal = all(0 <= w <= width and any(row) for row in widths.values() for w in row)
    same = tuple(sorted(widths)) == moe_layers and {len(r) for r in widths.values()} == {experts}
    if not (legal and same):
        raise UserError(
            "config.json: the tenp section does not match the model's MoE layers", BELONGS
        )
    return widths


def constants(
    raw: Mapping[str, Any], widths: Mapping[int, tuple[int, ...]]
) -> dict[int, frozenset[int]]:
    """Experts without neurons that give a constant, as the ``tenp`` section lists them by layer."""
    listed = (raw.get("tenp") or {}).get("constants", {})
    try:
        found = {int(layer): frozenset(map(int, row)) for layer, row in listed.items()}
        empty = all(widths[la][expert] == 0 for la, row in found.items() for expert in row)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise UserError("config.json: the tenp section is malformed", BELONGS) from None
    if not empty:
        raise UserError("config.json: the tenp section has constants of whole experts", BELONGS)
    return found

"""Which tensors a file holds, in order, with type and bytes: from the config alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ManifestTensor
from tenp_edge.exporters.gguf.architectures import (
    NAMES,
    architecture,
    expert_name,
    merged_name,
    tensor_name,
)
from tenp_edge.exporters.gguf.computed import computed_tensors
from tenp_edge.exporters.gguf.metadata import expert_width, shared_count
from tenp_edge.exporters.gguf.recipes import TypeRecipe
from tenp_edge.exporters.gguf.transforms import file_roles, to_file
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import Mamba2, ModelConfig, Shape, TensorSpec, expected_tensors
from tenp_edge.models.model_config import CONSTANT

LAYOUTS: tuple[str, ...] = ("per-expert", "merged", "padded")


@dataclass(frozen=True)
class Entry:
    """One tensor of the file and where it comes from.

    ``role`` says what is done to the source tensor ``name``; experts are named by layer (and
    ``expert`` in the per-expert layout, None when the tensor stacks them all); what has neither
    name nor layer is computed. ``wanted`` is the
    type it would have if its row length allowed.
    """

    tensor: ManifestTensor
    role: str
    wanted: str
    name: str | None = None
    layer: int | None = None
    expert: int | None = None


def entries(config: ModelConfig, layout: str, recipe: TypeRecipe) -> list[Entry]:
    """Every tensor of the file, in file order: the order of the source model's tensors.

    Raises UserError for a rule of the recipe that matches no tensor.
    """
    tensors: list[Entry] = []
    seen: set[int] = set()
    for spec in expected_tensors(config):
        if spec.expert is None:
            tensors += _plain(config, layout, recipe, spec)
        elif spec.layer is not None and spec.layer not in seen:
            seen.add(spec.layer)
            expand = _per_expert if layout == "per-expert" else _stacked
            tensors += expand(config, layout, recipe, spec.layer)
    if config.tie_word_embeddings and architecture(config).output_needed:
        tied = (config.vocab_size, config.hidden_size)
        spec = TensorSpec(config.embedding_name, tied, "output", "embeddings")
        tensors += _plain(config, layout, recipe, spec)
    tensors += _computed(config, recipe)
    _check_rules(recipe, tensors)
    return tensors


def _computed(config: ModelConfig, recipe: TypeRecipe) -> Iterator[Entry]:
    for role, tensor in computed_tensors(config).items():
        name, shape = NAMES[role], tuple(tensor.shape)
        recipe_type, kind = recipe.choose(name, role, None, shape)
        entry = ManifestTensor(name, shape, kind, TYPES[kind].nbytes(shape), "other")
        yield Entry(entry, role, recipe_type)


def _check_rules(recipe: TypeRecipe, found: list[Entry]) -> None:
    if not recipe.rules:
        return
    names = {entry.tensor.name for entry in found if entry.tensor.type != "F32"}
    used = {recipe.rule(name) for name in names}
    unused = [rule.text for rule in recipe.rules if rule not in used]
    if unused:
        raise UserError(
            f"--tensor-type '{unused[0]}' matches no tensor that an earlier rule has not taken",
            f"a regular expression for names such as {min(names)} or {max(names)}",
        )


def type_notes(found: list[Entry]) -> tuple[str, ...]:
    """Which tensors take another type than the recipe's because of their row length."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for entry in found:
        if entry.tensor.type != entry.wanted:
            key = entry.role, entry.tensor.type, entry.wanted
            groups[key].append(entry.tensor.shape[-1])
    return tuple(
        f"{len(rows)} tensor{'s' if len(rows) > 1 else ''} ({role}, rows of {_lengths(rows)}) "
        f"take {kind}: {recipe_type} needs a multiple of {TYPES[recipe_type].block}"
        for (role, kind, recipe_type), rows in sorted(groups.items())
    )


def _lengths(rows: list[int]) -> str:
    shortest, longest = min(rows), max(rows)
    return str(shortest) if shortest == longest else f"{shortest} to {longest}"


def _plain(
    config: ModelConfig, layout: str, recipe: TypeRecipe, spec: TensorSpec
) -> Iterator[Entry]:
    for role, shape in _targets(config, layout, spec):
        name = tensor_name(config, role, spec.layer)
        recipe_type, kind = recipe.choose(name, role, spec.layer, shape)
        tensor = ManifestTensor(name, shape, kind, TYPES[kind].nbytes(shape), "other")
        yield Entry(tensor, role, recipe_type, spec.name, spec.layer)


def _targets(config: ModelConfig, layout: str, spec: TensorSpec) -> list[tuple[str, Shape]]:
    """Roles and shapes in the file of one source tensor, as `transforms.to_file` gives them."""
    mla = config.mla
    if spec.role == "kv_b" and mla is not None and spec.layer is not None:
        heads, rank = config.layer_attention(spec.layer).heads, mla.kv_lora_rank
        return [
            ("k_b", (heads, rank, mla.qk_nope_head_dim)),
            ("v_b", (heads, mla.v_head_dim, rank)),
        ]
    if spec.role == "router_bias":
        return [(spec.role, spec.shape[-1:])]
    if spec.role in ("conv", "ssm_conv"):
        return [(spec.role, (spec.shape[0], spec.shape[-1]))]
    if spec.role in ("ssm_a", "ssm_d"):
        return [(spec.role, (*spec.shape, 1))]
    if spec.role == "ssm_norm" and spec.layer is not None:
        mixer = config.mixers[spec.layer]
        assert isinstance(mixer, Mamba2)
        return [(spec.role, (mixer.groups, spec.shape[0] // mixer.groups))]
    if spec.role == "shared_gate_up":
        half = (spec.shape[0] // 2, spec.shape[1])
        return [("shared_gate", half), ("shared_up", half)]
    if spec.part == "shared experts" and architecture(config).shared_count:
        width = shared_count(config, layout) * expert_width(config, layout)
        shape = (
            (config.hidden_size, width) if spec.role == "shared_down" else (width, spec.shape[1])
        )
        return [(spec.role, shape)]
    return _forms(config, spec) if spec.role.startswith("delta_") else [(spec.role, spec.shape)]


def _forms(config: ModelConfig, spec: TensorSpec) -> list[tuple[str, Shape]]:
    whole = torch.empty(spec.shape, device="meta")
    return [(role, tuple(to_file(config, role, whole).shape)) for role in file_roles(spec.role)]


def _stacked(config: ModelConfig, layout: str, recipe: TypeRecipe, layer: int) -> Iterator[Entry]:
    experts, width = len(config.expert_widths[layer]), expert_width(config, layout)
    for part in config.expert_parts:
        shape, role = (experts, *_part_shape(config, part, width)), f"expert_{part}"
        name = merged_name(layer, part)
        recipe_type, kind = recipe.choose(name, role, layer, shape)
        tensor = ManifestTensor(name, shape, kind, TYPES[kind].nbytes(shape), "routed experts")
        yield Entry(tensor, role, recipe_type, layer=layer)


def _per_expert(
    config: ModelConfig, layout: str, recipe: TypeRecipe, layer: int
) -> Iterator[Entry]:
    known: dict[tuple[str, int, str], tuple[str, Shape, str, int]] = {}
    for expert, width in enumerate(config.expert_widths[layer]):
        for part in config.parts_of(layer, expert):
            if not width and part != CONSTANT:
                continue  # It has no neurons.
            name, role = expert_name(layer, expert, part), f"expert_{part}"
            own = recipe.types.expert(layer, expert, part) if recipe.types else ""
            key = part, width, own
            # Such experts are alike, unless a rule of the user's names one of them.
            if key not in known or recipe.rules:
                shape = _part_shape(config, part, width)
                recipe_type, kind = recipe.choose(name, role, layer, shape, expert)
                known[key] = recipe_type, shape, kind, TYPES[kind].nbytes(shape)
            recipe_type = known[key][0]
            tensor = ManifestTensor(name, *known[key][1:], "routed experts")
            yield Entry(tensor, role, recipe_type, layer=layer, expert=expert)


def _part_shape(config: ModelConfig, part: str, width: int) -> Shape:
    """Of one expert: of a matrix (rows, columns), of a bias (rows,)."""
    hidden = config.hidden_size
    projection, _, bias = part.partition("_")
    shape = (hidden, width) if projection == "down" else (width, hidden)
    return shape[:1] if bias else shape

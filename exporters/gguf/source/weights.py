"""Where every weight of the model lies in the file: rows of ggml blocks, by Hugging Face's names.

    model.layers.L.self_attn.q_proj.weight    <- blk.L.attn_q.weight, its rows put back in order
    model.layers.L.self_attn.kv_b_proj.weight <- blk.L.attn_k_b.weight and blk.L.attn_v_b.weight
    model.layers.L.mlp.experts.E.up_proj      <- slice E of blk.L.ffn_up_exps.weight

A stacked tensor is cut into the experts' own. So nothing but what is asked for is read, a few rows
or one expert at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import torch

from tenp_edge.checkpoint.stored.ggml import decodes
from tenp_edge.disk import read_range
from tenp_edge.errors import UserError, shown
from tenp_edge.exporters.gguf.architectures import NAMES, expert_name, merged_name, tensor_name
from tenp_edge.exporters.gguf.computed import computed_tensors
from tenp_edge.exporters.gguf.source.parts import GgufParts, Placed
from tenp_edge.exporters.gguf.transforms import (
    file_roles,
    from_file,
    is_reshaped,
    is_transformed,
    to_file,
)
from tenp_edge.models import ModelConfig, Shape, TensorSpec, expected_tensors
from tenp_edge.models.layouts import PLAIN, WEIGHT_DTYPES, Layout, PartRule, Rules, StoredWeight
from tenp_edge.models.safetensors_header import StoredTensor
from tenp_edge.models.tensors import Part
from tenp_edge.runtime.gguf.header import GGML_TYPES

# Source tensors as they are, of files from before llama.cpp split them.
_UNSPLIT = {"kv_b": "blk.{layer}.attn_kv_b.weight", "delta_qkvz": "blk.{layer}.ssm_in.weight"}
_FUSED = "blk.{layer}.ffn_gate_up_exps.{kind}"
_SOUND = "a sound copy of it, or the checkpoint it was made from"
_CODES = "codes"


@dataclass(frozen=True)
class _Rows:
    """``rows`` rows of ``length`` values of a tensor, from row ``first`` on; under this name."""

    name: str
    placed: Placed
    length: int
    rows: int
    first: int = 0

    @property
    def kind(self) -> str:
        return self.placed.info.type_name

    @property
    def stored(self) -> StoredTensor:
        """(rows, length) of numbers; of blocks (rows, bytes of a row)."""
        _, block, block_bytes = GGML_TYPES[self.placed.info.type]
        row = self.length // block * block_bytes
        offset = self.placed.info.offset + self.first * row
        columns = self.length if block == 1 else row
        return StoredTensor(
            self.placed.file, offset, self.rows * row, self.kind, (self.rows, columns)
        )


def read_weights(
    parts: GgufParts, config: ModelConfig
) -> tuple[dict[str, StoredTensor], dict[str, StoredWeight]]:
    """The tensors of every weight that ``config`` implies, and the weights.

    Raises UserError for one that is missing, of another shape, or of a type that ggml cannot
    decode, and for tensors that nothing is made of.
    """
    index = _Index(parts, config)
    for spec in expected_tensors(config, without_experts=config.expert_widths):
        index.add_plain(spec)
    for layer in config.expert_widths:
        for part in config.expert_parts:
            index.add_experts(layer, part)
    index.leave_out()
    return index.tensors, index.weights


class _Index:
    def __init__(self, parts: GgufParts, config: ModelConfig) -> None:
        self._parts, self._config = parts, config
        self.tensors: dict[str, StoredTensor] = {}
        self.weights: dict[str, StoredWeight] = {}
        self._used: set[str] = set()
        # The model's dtype is float32 then, and matrices of other numbers are read in it too.
        self._decoded = any(p.info.type_name not in WEIGHT_DTYPES for p in parts.tensors.values())
        # What tenp-edge pruned may be padded to rows and columns that only the file has.
        self._padded = "tenp" in config.raw

    def add_plain(self, spec: TensorSpec) -> None:
        """A weight outside the routed experts."""
        config = self._config
        whole = _UNSPLIT.get(spec.role, "").format(layer=spec.layer)
        if whole in self._parts.tensors:
            self._add(spec.name, spec.shape, spec.part, self._rows(whole, spec.shape))
            return
        roles, empty = file_roles(spec.role), torch.empty(spec.shape, device="meta")
        shapes = {role: tuple(to_file(config, role, empty).shape) for role in roles}
        rows = {
            role: self._rows(tensor_name(config, role, spec.layer), shape)
            for role, shape in shapes.items()
        }
        if not any(is_transformed(config, r) and not is_reshaped(config, r) for r in roles):
            self._add(spec.name, spec.shape, spec.part, rows[roles[0]])
            return
        restore = partial(from_file, config, spec.role)
        layout = _restored(tuple(rows.items()), tuple(shapes.items()), restore)
        named = {role: one.name for role, one in rows.items()}
        self.tensors |= {one.name: one.stored for one in rows.values()}
        self.weights[spec.name] = StoredWeight(spec.name, spec.shape, spec.part, layout, named)

    def add_experts(self, layer: int, part: str) -> None:
        """One part of all experts of a layer."""
        config = self._config
        projection, _, bias = part.partition("_")
        name_of = config.expert_bias if bias else config.expert_tensor
        place = self._experts(layer, part)
        for expert, width in enumerate(config.expert_widths[layer]):
            matrix = (
                (config.hidden_size, width) if projection == "down" else (width, config.hidden_size)
            )
            shape = matrix[:1] if bias else matrix
            name = name_of(layer, expert, config.family.matrices.index(projection))
            self._add(name, shape, "routed experts", place(expert, shape))

    def leave_out(self) -> None:
        """Layers that predict further tokens are left out; what else is not known is refused."""
        config = self._config
        computed = {NAMES[role]: tensor for role, tensor in computed_tensors(config).items()}
        for name in sorted(self._parts.tensors.keys() - self._used):
            info = self._parts.tensors[name].info
            if _layer_of(name) >= config.num_hidden_layers:
                self.tensors[name] = self._rows_of(name, prod(info.shape[1:]), 0, name).stored
            elif name not in computed or not self._holds(name, computed[name]):
                family = config.family.model_type
                raise self._error(f"a model of {family} has no {name}, and what it does is unknown")

    # -- helpers -------------------------------------------------------------------------------

    def _add(self, name: str, shape: Shape, part: Part, rows: _Rows) -> None:
        """A weight that is these rows: as they are (of a vector their beginning), or decoded."""
        stored, layout = rows.stored, PLAIN
        vector = prod(shape) == shape[-1]
        as_is = rows.kind == "F32" or (rows.kind in WEIGHT_DTYPES and (vector or not self._decoded))
        if as_is and (vector or rows.length == shape[-1]):
            nbytes = stored.nbytes // prod(stored.shape) * prod(shape)
            stored = StoredTensor(stored.file, stored.offset, nbytes, stored.dtype, shape)
        else:
            layout = _decoded(rows.placed.info.type, stored.shape[1])
        self.tensors[rows.name] = stored
        tensors = {next(iter(layout.rules((1, 1)))): rows.name}
        self.weights[name] = StoredWeight(name, shape, part, layout, tensors)

    def _experts(self, layer: int, part: str) -> Callable[[int, Shape], _Rows]:
        """Where an expert's part lies: in a tensor of all, beside gate or up in one, or alone."""
        projection, _, bias = part.partition("_")
        merged = merged_name(layer, part)
        fused = _FUSED.format(layer=layer, kind=bias or "weight")
        count, tensors = len(self._config.expert_widths[layer]), self._parts.tensors
        if merged in tensors:
            height = 1 if bias else tensors[merged].info.shape[1]

            def in_merged(expert: int, shape: Shape) -> _Rows:
                self._checked(merged, (count, *shape))
                first, rows = expert * height, prod(shape[:-1])
                return self._rows_of(merged, rows, first, f"{merged}[{expert}]")

            return in_merged
        if projection != "down" and fused in tensors and not bias:

            def in_fused(expert: int, shape: Shape) -> _Rows:
                self._checked(fused, (count, 2 * shape[0], shape[1]))
                first = (2 * expert + self._config.family.matrices.index(projection)) * shape[0]
                return self._rows_of(fused, shape[0], first, f"{fused}[{expert}, {projection}]")

            return in_fused
        return lambda expert, shape: self._rows(expert_name(layer, expert, part), shape)

    def _rows(self, name: str, shape: Shape) -> _Rows:
        """All rows of the tensor ``name``, which has this shape."""
        self._checked(name, shape)
        return self._rows_of(name, prod(shape[:-1]), 0, name)

    def _rows_of(self, tensor: str, rows: int, first: int, name: str) -> _Rows:
        placed = self._parts.tensors[tensor]
        return _Rows(name, placed, placed.info.shape[0], rows, first)

    def _checked(self, name: str, shape: Shape) -> None:
        """Raise UserError unless the tensor ``name`` is there, of ``shape`` and decodable."""
        placed = self._parts.tensors.get(name)
        if placed is None:
            raise self._error(f"it has no tensor {name}")
        self._used.add(name)
        own, wanted = (_without_ones(sizes) for sizes in (placed.info.shape[::-1], shape))
        larger = len(own) == len(wanted) and all(a >= b for a, b in zip(own, wanted, strict=True))
        if own != wanted and not (self._padded and larger):
            raise self._error(f"{name} is {_times(own)}, its metadata implies {_times(wanted)}")
        if not decodes(placed.info.type):
            raise self._error(f"{name} is {placed.info.type_name}, which ggml cannot decode")

    def _holds(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the tensor ``name`` is this one, of float32."""
        placed = self._parts.tensors[name]
        info = placed.info
        if info.type_name != "F32" or info.shape[::-1] != tuple(tensor.shape):
            return False
        data = read_range(placed.file, info.offset, info.nbytes)
        return torch.equal(torch.frombuffer(data, dtype=torch.float32), tensor.flatten())

    def _error(self, why: str) -> UserError:
        return UserError(
            f"{self._parts.path.name} is not a usable model: {shown(why, 240)}", _SOUND
        )


@cache
def _decoded(ggml_id: int, columns: int) -> Layout:
    """Rows of blocks, each of which is a row of the weight."""
    kind = GGML_TYPES[ggml_id][0]

    @cache
    def rules(shape: Shape) -> Rules:
        return {_CODES: PartRule(("",), (kind,), ((shape[0], columns),))}

    facts = {"types": {_CODES: ggml_id}, "shapes": {}, "restore": None}
    return Layout("ggml", kind, rules, facts, any_shape=True)


def _restored(
    rows: tuple[tuple[str, _Rows], ...],
    shapes: tuple[tuple[str, Shape], ...],
    restore: Callable[..., torch.Tensor],
) -> Layout:
    """Tensors that the weight is put together from, all of it at once."""
    parts = {part: PartRule(("",), (one.kind,), (one.stored.shape,), rows=0) for part, one in rows}
    types: Mapping[str, int] = {part: one.placed.info.type for part, one in rows}
    facts = {"types": types, "shapes": dict(shapes), "restore": restore}
    return Layout("ggml", rows[0][1].kind, lambda _: parts, facts, any_shape=True)


def _layer_of(name: str) -> int:
    """The number in blk.N.; -1 outside the layers."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "blk" and number.isdecimal() else -1


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))

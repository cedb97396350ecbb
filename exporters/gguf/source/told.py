"""What a file says of its model: metadata and tensors, with the rows that explain them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tenp_edge.errors import UserError, shown
from tenp_edge.exporters.gguf.architectures import NAMES, Architecture, expert_name, merged_name
from tenp_edge.exporters.gguf.source.parts import GgufParts
from tenp_edge.models import Family
from tenp_edge.runtime.gguf.metadata_reader import Fields

_SOUND = "a sound copy of it"

Raw = dict[str, Any]


class SourceFields(Fields):
    """Metadata, whose errors are those of a model to start from."""

    def error(self, why: str) -> UserError:
        return UserError(f"{self.header.file} is not a usable model: {shown(why, 240)}", _SOUND)


@dataclass(frozen=True, eq=False)
class Told:
    """A file's metadata and tensors, with the family and the row that they are of."""

    parts: GgufParts
    fields: Fields
    family: Family
    row: Architecture

    @property
    def prefix(self) -> str:
        """The architecture's name, before most keys."""
        return self.fields.prefix

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.parts.header.fields

    def real(self, key: str, default: float) -> float:
        """The shortest decimal number that the stored float32 is: 1e-06, not 9.99999997e-07."""
        return float(str(np.float32(self.fields.real(key, default))))

    def rows(self, name: str) -> int:
        """Of the tensor ``name``: its row count, 0 where there is none."""
        placed = self.parts.tensors.get(name)
        return placed.info.shape[1] if placed and len(placed.info.shape) > 1 else 0

    def in_layers(self, name: str) -> bool:
        """Whether some layer has the tensor blk.N.``name``."""
        return any(f"blk.{layer}.{name}" in self.parts.tensors for layer in range(self.layers))

    @cached_property
    def layers(self) -> int:
        """Layers of the language model proper: those that predict further tokens are not."""
        return self.fields.integer("block_count") - self.fields.integer("nextn_predict_layers", 0)

    @cached_property
    def dense_layers(self) -> int:
        """How many layers in front have no experts."""
        if not self.row.leading_dense:
            return 0
        return self.fields.integer("leading_dense_block_count", 0)

    @cached_property
    def first_routed(self) -> int:
        """The first layer with routed experts."""
        router = NAMES["router"]
        routed = (x for x in range(self.layers) if router.format(layer=x) in self.parts.tensors)
        layer = next(routed, None)
        if layer is None:
            raise self.fields.error("it has no tensor blk.N.ffn_gate_inp.weight")
        return layer

    @cached_property
    def width(self) -> int:
        """Full width of a routed expert."""
        if "tenp.full_width" in self.parts.header.fields:
            return self.fields.integer("tenp.full_width")
        layer = self.first_routed
        fused = self.rows(f"blk.{layer}.ffn_gate_up_exps.weight") // 2
        apart = self.rows(expert_name(layer, 0, "up"))
        width = self.rows(merged_name(layer, "up")) or fused or apart
        if not width:
            raise self.fields.error(f"layer {layer} has no routed experts")
        return width

    @cached_property
    def pruned_widths(self) -> dict[str, list[int]] | None:
        """Of every expert by layer, where tenp-edge pruned the file."""
        if "tenp.expert_widths" not in self.parts.header.fields:
            return None
        told, layers = (
            self.fields.integers("tenp.expert_widths"),
            self.fields.integers("tenp.moe_layers"),
        )
        count = len(told) // max(1, len(layers))
        if all(width == self.width for width in told):
            return None
        return {
            str(layer): told[place * count : (place + 1) * count]
            for place, layer in enumerate(layers)
        }

"""CompressionPlan: which neurons of which expert stay. Pure data; JSON and safetensors on disk.

``widths`` alone decide every byte, so a plan can be priced before anyone has looked at a weight;
``retained`` (which neurons) is filled in from calibration scores. plan.json is for people and
tools, plan.safetensors holds one int32 tensor of ascending neuron indices per routed expert, named
``layers.{layer}.experts.{expert}``; a removed expert is an empty tensor. Beside those of constants
lies the mean of each of their neurons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import torch

from tenp_edge.checkpoint.files import (
    Shard,
    TensorEntry,
    dtype_name,
    read_stored,
    write_shards,
)
from tenp_edge.checkpoint.plan_record import PlanRecord, record_of
from tenp_edge.checkpoint.tensor_types import TensorTypes, types_of_json
from tenp_edge.disk import read_json, read_range, write_json
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.models.headers import read_header

VERSION = 2
# Of plans with types or experts without neurons, which older releases would read as something else.
LATER_VERSION = 3
Widths = dict[int, tuple[int, ...]]
ExpertKey = tuple[int, int]
Kind = TypeVar("Kind")
_LAYER_DIGITS = 6


@dataclass(frozen=True)
class CompressionPlan:
    """Widths of every routed expert, and the retained neurons once they are known.

    ``widths``: layer -> kept width per expert of the *source* model, 0 for a removed expert.
    ``retained``: (layer, expert) -> ascending indices; None while only the bytes are planned.
    ``record``: how the plan was made and what it predicts.
    ``memory``: the memory table; ``files``: exact bytes of every weight file to be written.
    ``keeps_places``: an expert of width 0 keeps its place in the router, and gives nothing (but a
    bias of its output, where the family has one); else it is removed.
    ``constants``: those of them, as (layer, expert), that give a constant, their mean output;
    ``means``: (layer, expert) -> the mean of each neuron of theirs, float32 [full width], which
    that is made of; None while only the bytes are planned.
    ``types``: of every tensor, where the plan chose them one by one; None where the record's
    ``quant`` says them. They are no part of the digest: what is pruned does not depend on them.
    """

    model_type: str
    fingerprint: str
    full_width: int
    widths: Widths
    retained: Mapping[ExpertKey, torch.Tensor] | None = None
    record: PlanRecord = field(default_factory=PlanRecord)
    memory: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    types: TensorTypes | None = None
    keeps_places: bool = False
    constants: frozenset[ExpertKey] = frozenset()
    means: Mapping[ExpertKey, torch.Tensor] | None = None

    def kept_experts(self, layer: int) -> tuple[int, ...]:
        """Numbers in the source model of the experts that the pruned one has, ascending."""
        row = self.widths[layer]
        return tuple(e for e, width in enumerate(row) if width or self.keeps_places)

    @property
    def file_types(self) -> TensorTypes | None:
        """``types`` by the experts of the pruned model, as exporters take them."""
        if self.types is None:
            return None
        return self.types.kept({layer: self.kept_experts(layer) for layer in self.widths})

    @property
    def keep_ratio(self) -> float:
        """rho: share of the routed-expert parameters that stay."""
        full = sum(len(row) for row in self.widths.values()) * self.full_width
        return sum(sum(row) for row in self.widths.values()) / full

    @property
    def removes_experts(self) -> bool:
        empty = any(width == 0 for row in self.widths.values() for width in row)
        return empty and not self.keeps_places

    @property
    def digest(self) -> str:
        """Identity of what the plan does to the weights (not of the prices around it)."""
        state = hashlib.sha256(self.fingerprint.encode())
        state.update(json.dumps({str(k): v for k, v in sorted(self.widths.items())}).encode())
        state.update(b"places" if self.keeps_places else b"")
        for key in sorted(self.retained or {}):
            state.update(self.retained[key].numpy().tobytes())  # type: ignore[index]
        for key in sorted(self.means or {}):
            state.update(f"mean of {key}".encode() + self.means[key].numpy().tobytes())  # type: ignore[index]
        return state.hexdigest()[:32]

    def neurons(self, layer: int, expert: int) -> torch.Tensor:
        """Ascending indices of the retained neurons, int64, [width]."""
        if self.retained is None:
            raise UserError(
                "the plan has widths but no neurons: it was made without calibration",
                "tenp-edge calibrate MODEL -o WORK, then plan --calibration WORK",
            )
        return self.retained[layer, expert].long()

    def check(self, config: ModelConfig, fingerprint: str) -> None:
        """Raise UserError unless the plan was made for this very checkpoint."""
        if fingerprint != self.fingerprint:
            raise UserError(
                f"the plan belongs to another checkpoint ({self.fingerprint[:12]}, "
                f"this one is {fingerprint[:12]})",
                "plan again for this model",
            )
        shape = {layer: len(row) for layer, row in self.widths.items()}
        if shape != {layer: len(row) for layer, row in config.expert_widths.items()}:
            raise UserError("the plan does not have the experts of this model", "plan again")

    def save(self, file: Path) -> None:
        """Write ``file`` (plan.json) and, when neurons are known, plan.safetensors beside it."""
        if self.retained is not None:
            names = {_neurons_name(key): t.int() for key, t in sorted(self.retained.items())}
            names |= {_mean_name(key): t.float() for key, t in sorted((self.means or {}).items())}
            entries = tuple(
                TensorEntry(n, dtype_name(t.dtype), tuple(t.shape)) for n, t in names.items()
            )
            shard = Shard(file.with_suffix(".safetensors").name, entries)
            file.with_suffix(".safetensors").unlink(missing_ok=True)
            for _ in write_shards(file.parent, [shard], lambda name: names[name]):
                pass
        write_json(file, self.to_json())

    def to_json(self) -> dict[str, Any]:
        more: dict[str, Any] = {} if self.types is None else {"types": self.types.to_json()}
        more |= {"keeps_places": True} if self.keeps_places else {}
        rows = [(str(la), [e for x, e in sorted(self.constants) if x == la]) for la in self.widths]
        more |= {"constants": {la: row for la, row in rows if row}} if self.constants else {}
        return {
            "format": "tenp-edge plan",
            "version": LATER_VERSION if more else VERSION,
            "model": {"model_type": self.model_type, "fingerprint": self.fingerprint},
            "moe_intermediate_size": self.full_width,
            "keep_ratio": self.keep_ratio,
            "record": self.record.to_json(),
            "memory": dict(self.memory),
            "files": dict(self.files),
            "has_neurons": self.retained is not None,
            "digest": self.digest,
            "widths": {str(layer): list(row) for layer, row in sorted(self.widths.items())},
            **more,
        }


def load_plan(file: Path) -> CompressionPlan:
    """Read a plan back and check that it is whole. Raises UserError naming the field."""
    raw = _raw_plan(file)
    field = partial(_field, file, raw)
    full = field("moe_intermediate_size", int)
    widths = _widths(file, field("widths", dict), full)
    model = field("model", dict)
    constants = _constants(file, raw, widths)
    known = field("has_neurons", bool)
    plan = CompressionPlan(
        model_type=_field(file, model, "model_type", str),
        fingerprint=_field(file, model, "fingerprint", str),
        full_width=full,
        widths=widths,
        retained=_load_neurons(file, widths, full) if known else None,
        record=record_of(field("record", dict)),
        memory=field("memory", dict),
        files=field("files", dict),
        types=_types(field("types", dict), widths) if _has_types(raw) else None,
        keeps_places=_keeps_places(raw),
        constants=constants,
        means=_load_means(file, constants, full) if known and constants else None,
    )
    if plan.digest != raw.get("digest"):
        raise UserError(f"{file} does not match its plan.safetensors", "plan again")
    return plan


def names_types(file: Path) -> bool:
    """Whether the plan in ``file`` says the type of every tensor. Reads plan.json alone."""
    return _has_types(_raw_plan(file))


def _raw_plan(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        raise UserError(f"there is no plan {file}", _made(file))
    if (file / "plan.json").is_file():
        raise UserError(f"{file} is a directory", f"--plan {quote(str(file / 'plan.json'))}")
    raw = read_json(file, "plan again")
    if raw.get("format") != "tenp-edge plan" or raw.get("version") not in (VERSION, LATER_VERSION):
        versions = f"{VERSION} or {LATER_VERSION}"
        raise UserError(f"{file} is not a tenp-edge plan of version {versions}", "plan again")
    return raw


def _made(file: Path) -> str:
    """How a plan gets to ``file``."""
    work = file.parent / "calibration"  # where compress leaves it
    known = quote(str(work)) if (work / "statistics.json").is_file() else "WORK"
    return f"tenp-edge plan MODEL --ram 8GiB --calibration {known} -o {quote(str(file))}"


def _has_types(raw: Mapping[str, Any]) -> bool:
    return raw["version"] == LATER_VERSION and ("types" in raw or not _keeps_places(raw))


def _keeps_places(raw: Mapping[str, Any]) -> bool:
    return raw["version"] == LATER_VERSION and raw.get("keeps_places") is True


def _field(file: Path, raw: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind:
    """A field of plan.json. Raises UserError where it is missing or of another type."""
    value = raw.get(name)
    if type(value) is not kind:
        raise UserError(f"{file}: field '{name}' is missing or malformed", "plan again")
    return value


def _widths(file: Path, raw: Mapping[str, Any], full: int) -> Widths:
    """Layer -> width of each expert, all of them whole numbers in 0..full."""
    rows = list(raw.values())
    layers = all(key.isdecimal() and len(key) <= _LAYER_DIGITS for key in raw)
    lists = all(isinstance(row, list) and row for row in rows)
    if not raw or not layers or not lists or any(type(w) is not int for row in rows for w in row):
        raise UserError(f"{file}: field 'widths' is missing or malformed", "plan again")
    if any(not 0 <= width <= full for row in rows for width in row):
        raise UserError(f"{file}: a width is outside 0..{full}", "plan again")
    return {int(layer): tuple(row) for layer, row in raw.items()}


def _types(raw: Mapping[str, Any], widths: Widths) -> TensorTypes:
    return types_of_json(raw, {layer: len(row) for layer, row in widths.items()})


def _constants(file: Path, raw: Mapping[str, Any], widths: Widths) -> frozenset[ExpertKey]:
    listed = raw.get("constants", {}) if _keeps_places(raw) else {}
    try:
        found = frozenset((int(layer), expert) for layer, row in listed.items() for expert in row)
        empty = all(widths[layer][expert] == 0 for layer, expert in found)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        empty = False
    if not empty:
        raise UserError(f"{file}: field 'constants' is missing or malformed", "plan again")
    return found


def _load_means(
    file: Path, constants: frozenset[ExpertKey], full: int
) -> dict[ExpertKey, torch.Tensor]:
    path = file.with_suffix(".safetensors")
    stored, means = read_header(path), {}
    for key in constants:
        entry = stored.get(_mean_name(key))
        mean = None if entry is None else read_stored(entry)
        if mean is None or mean.dtype != torch.float32 or tuple(mean.shape) != (full,):
            raise UserError(f"{path}: {_mean_name(key)} is no mean of neurons", "plan again")
        means[key] = mean
    return means


def _neurons_name(key: ExpertKey) -> str:
    return f"layers.{key[0]}.experts.{key[1]}"


def _mean_name(key: ExpertKey) -> str:
    return f"{_neurons_name(key)}.mean"


def _load_neurons(file: Path, widths: Widths, full: int) -> dict[ExpertKey, torch.Tensor]:
    path = file.with_suffix(".safetensors")
    if not path.is_file():
        raise UserError(f"{path} is missing beside {file.name}", "plan again")
    stored, retained = read_header(path), {}
    for layer, row in widths.items():
        for expert, width in enumerate(row):
            name = _neurons_name((layer, expert))
            entry = stored.get(name)
            if entry is None or (entry.dtype, entry.shape) != ("I32", (width,)):
                raise UserError(f"{path}: {name} is not a legal slice", "plan again")
            data = read_range(entry.file, entry.offset, entry.nbytes) if entry.nbytes else b""
            kept = torch.frombuffer(data, dtype=torch.int32) if data else torch.empty(0).int()
            ascending = bool((kept[1:] > kept[:-1]).all()) and not (kept < 0).any()
            if not ascending or (width and int(kept[-1]) >= full):
                raise UserError(f"{path}: {name} is not a legal slice", "plan again")
            retained[layer, expert] = kept
    return retained

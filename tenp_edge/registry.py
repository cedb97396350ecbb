"""The exporter contract, and finding exporters by entry point.

An exporter turns a model (a checkpoint seen through a plan) into files of one format. It first
says exactly what it will write (`Manifest`: every tensor with name, shape, type and bytes, every
file with its exact size), from the config and widths alone; the planner adds that manifest up and
the writer follows it, so a predicted size is the written size by construction.

A third party adds a format with an entry point in the group ``tenp_edge.exporters`` that names an
object with this interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun, RunMemory
from tenp_edge.importance import Importance
from tenp_edge.models import ModelConfig
from tenp_edge.progress import QUIET, Progress
from tenp_edge.ranges import Ranges
from tenp_edge.source import ModelSource, StoredModel, WeightSource


@dataclass(frozen=True)
class FixedLengths:
    """Lengths of graphs whose shapes are fixed: sequences, prompt tokens at once, KV cache."""

    batch: int = 1
    length: int = 128
    past: int = 1023


def fixed_lengths(batch: int | None, length: int | None, past: int | None) -> FixedLengths | None:
    """What the user said, and defaults for the rest; None when nothing was said."""
    given = {"batch": batch, "length": length, "past": past}
    chosen = {name: value for name, value in given.items() if value is not None}
    return FixedLengths(**chosen) if chosen else None


@dataclass(frozen=True)
class WidthLimits:
    """Expert widths that a layout can hold: multiples of ``multiple`` (the full width included), in
    the whole model at most ``most`` different ones."""

    multiple: int = 1
    most: int | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What the user may choose about a file. ``layout`` None means the format's default.

    ``imatrix``: quantise with an importance matrix, which `ExportData` must then have.
    ``tensor_types``: "regex=TYPE", types of single tensors that go before those of ``quant``.
    ``imatrix_file``: where to write that matrix too, for other tools.
    ``shard_bytes``: cut weight files at this size, for formats that keep weights in files of their
    own. ``latent_cache``: latent attention keeps its latent, not the keys and values it expands to.
    ``lengths`` and ``targets`` (compilers that must take every operator): for fixed shapes.
    """

    quant: str
    layout: str | None = None
    imatrix: bool = False
    tensor_types: tuple[str, ...] = ()
    imatrix_file: str | None = None
    shard_bytes: int | None = None
    latent_cache: bool = False
    lengths: FixedLengths | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportData:
    """What was measured on text for whoever quantises; None where it was not.

    ``imatrix``: how much each column of each matrix is fed. ``ranges``: the extremes of what goes
    into and comes out of each matrix.
    """

    imatrix: Importance | None = None
    ranges: Ranges | None = None


NO_DATA = ExportData()


@dataclass(frozen=True)
class ManifestTensor:
    """One tensor of an exported file; ``shape`` is row-major, its last size the row length.

    ``part``: "routed experts" or "other", for the memory table.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    part: str


@dataclass(frozen=True)
class Manifest:
    """Everything an export will write. ``files``: relative name -> exact bytes.

    ``notes`` names every tensor group that takes another type than asked for, and why.
    """

    format: str
    layout: str
    quant: str
    tensors: tuple[ManifestTensor, ...]
    files: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def file_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class Exporter(Protocol):
    """One format. ``layouts[0]`` and ``quants`` say what it can write; to ``weighted_quants`` an
    importance matrix is of use.

    ``automatic_quants``: what may be chosen for a budget when the user names no type, the most
    precise first; none: always the profile's default.
    ``fixed_layouts`` are those of fixed shapes: their files need `ExportOptions.lengths`, and
    compute every expert for every token.
    ``default_quant`` is taken where neither the user nor the profile says one, ``kv_types`` are
    those its KV cache can have (empty: any). ``target`` names the file or directory that a compress
    run writes.
    """

    format: str
    layouts: tuple[str, ...]
    fixed_layouts: tuple[str, ...]
    quants: tuple[str, ...]
    weighted_quants: tuple[str, ...]
    automatic_quants: tuple[str, ...]
    default_quant: str
    kv_types: tuple[str, ...]
    target: str

    def check(self, config: ModelConfig, options: ExportOptions) -> None:
        """Raise UserError when this model cannot be written that way (before any long work)."""
        ...

    def manifest(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions
    ) -> Manifest:
        """What will be written for ``config`` (the pruned model's); reads no weights.

        ``checkpoint`` supplies the tokenizer files, whose bytes count too.
        """
        ...

    def write(
        self,
        source: ModelSource,
        options: ExportOptions,
        target: Path,
        data: ExportData = NO_DATA,
        progress: Progress = QUIET,
    ) -> Manifest:
        """Write ``target`` one tensor at a time, under a temporary name until it is complete.

        Raises UserError where ``options`` need data that ``data`` lacks.
        """
        ...

    def read_back(self, path: Path, config: ModelConfig) -> StoredModel:
        """The weights of the written ``path``, decoded, one at a time; ``config`` describes the
        unpruned model. Raises UserError for a file that holds something else."""
        ...

    def run_memory(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, run: MemoryRun
    ) -> RunMemory | None:
        """What running the file of `manifest` takes here, from its runtime, without any weight.

        None where no runtime can be asked: the planner's own estimate counts then. Raises
        UserError when the runtime refuses the run.
        """
        ...

    def needs_ranges(self, options: ExportOptions) -> bool:
        """Whether `write` takes the ranges of activations, measured on text (`ExportData`)."""
        ...

    def encoding_speed(self, options: ExportOptions) -> float:
        """Bytes of float32 weights that are encoded per second here, measured for a moment."""
        ...


@runtime_checkable
class Requantiser(Protocol):
    """What an exporter may also be: one that can say what its types do to weights, unwritten.

    ``measured_quants``: which of them may be chosen once their loss was measured, the most precise
    first.
    """

    measured_quants: tuple[str, ...]

    def requantised(
        self, source: ModelSource, options: ExportOptions, data: ExportData = NO_DATA
    ) -> WeightSource:
        """``source`` with its weights as `write` would store them, decoded."""
        ...


def exporter(name: str) -> Exporter:
    """The exporter for format ``name`` ("gguf"); UserError with the list when there is none."""
    found = {point.name: point for point in entry_points(group="tenp_edge.exporters")}
    if name not in found:
        formats = ", ".join(sorted(found)) or "none is installed"
        raise UserError(f"no exporter for format '{name}'", f"--format {formats}")
    loaded: Exporter = found[name].load()
    return loaded


def width_limits(writer: Exporter, options: ExportOptions) -> WidthLimits:
    """What an exporter with a method ``width_limits(options)`` says; most formats have none."""
    limits = getattr(writer, "width_limits", None)
    found: WidthLimits = WidthLimits() if limits is None else limits(options)
    return found


def measured_quants(writer: Exporter) -> tuple[str, ...]:
    """The types whose loss can be measured; none where the exporter is no `Requantiser`."""
    return writer.measured_quants if isinstance(writer, Requantiser) else ()


def placed_files(writer: Exporter, manifest: Manifest) -> dict[str, int]:
    """The manifest's files as a compress run places them: a directory's lie under its name."""
    return {
        name if name == writer.target else f"{writer.target}/{name}": nbytes
        for name, nbytes in manifest.files.items()
    }

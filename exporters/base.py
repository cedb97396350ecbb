"""The exporter contract, and finding exporters by entry point.

An exporter turns a model (a checkpoint seen through a plan) into files of one format. It first
says exactly what it will write (`Manifest`: every tensor with name, shape, type and bytes, every
file with its exact size), from the config and widths alone; the planner adds that manifest up and
the writer follows it, so a predicted size is the written size by construction. What it wrote it
knows again, reads back, and runs: so that validation can compare it with the original (`Judge`).

A third party adds a format with an entry point in the group ``tenp_edge.exporters`` that names an
object with this interface.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, runtime_checkable

import torch

from tenp_edge.calibration.activation_ranges import Ranges
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, StoredModel, WeightSource
from tenp_edge.checkpoint.tensor_types import AUTO, TensorTypes
from tenp_edge.disk import atomic_file, require_free
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.memory.footprint import MemoryRun, RunMemory

KEEP = "keep"  # a ``quant``: of every tensor the type that the model's own file has it in


@dataclass(frozen=True)
class FixedLengths:
    """Lengths of graphs whose shapes are fixed: sequences, prompt tokens at once, KV cache."""

    batch: int = 1
    length: int = 128
    past: int = 1023


def fixed_lengths(batch: int | None, length: int | None, past: int | None) -> FixedLengths | None:
    """What the user said, and defaults for the rest; None when nothing was said."""
    lengths = {"batch": batch, "length": length, "past": past}
    chosen = {name: value for name, value in lengths.items() if value is not None}
    return FixedLengths(**chosen) if chosen else None


@dataclass(frozen=True)
class WidthLimits:
    """Expert widths that a layout can hold: multiples of ``multiple`` (the full width included), in
    the whole model at most ``most`` different ones. Rows of a width that is no multiple of
    ``block`` take a larger type than the one asked for."""

    multiple: int = 1
    most: int | None = None
    block: int = 1


@dataclass(frozen=True)
class ExportOptions:
    """What the user may choose about a file. ``layout`` None means the format's default.

    ``imatrix``: quantise with an importance matrix, which `ExportData` must then have.
    ``tensor_types``: "regex=TYPE", types of single tensors that go before those of ``quant``.
    ``imatrix_file``: where to write that matrix too, for other tools.
    ``shard_bytes``: cut weight files at this size, for formats that keep weights in files of their
    own. ``latent_cache``: latent attention keeps its latent, not the keys and values it expands to.
    ``lengths`` and ``targets`` (compilers that must take every operator): for fixed shapes.
    ``types``: of every tensor, by the experts of the model that is written; ``quant`` is then
    `tensor_types.AUTO`, and ``tensor_types`` go before them, too.
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
    types: TensorTypes | None = None

    def typed(self, types: TensorTypes | None) -> ExportOptions:
        """The same with ``types``, where there are some."""
        return self if types is None else replace(self, quant=AUTO, types=types)


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

    @property
    def type_shares(self) -> dict[str, float]:
        """Share of the routed experts' bytes by type, the largest first."""
        nbytes: Counter[str] = Counter()
        for tensor in self.tensors:
            if tensor.part == "routed experts":
                nbytes[tensor.type] += tensor.nbytes
        return {name: count / nbytes.total() for name, count in nbytes.most_common()}


@dataclass(frozen=True)
class JudgeRequest:
    """The text that a written file is judged on, and how; ``reference`` is the unpruned model.

    ``tokens`` [sequences, positions], padded on the right to ``lengths``; logits are compared from
    position ``first`` on. ``spans``: domain -> its sequences.
    ``split``: the loss is split into its steps, so that the file's weights can be read back.
    ``memory``: a run whose peak memory is measured too, and ``predicted_peak_rss`` what was
    predicted of it, in bytes. ``twin``: in unmodified software of others where the format is ours.
    ``scratch``: a directory for files that are not kept.
    """

    reference: ModelSource
    tokens: torch.Tensor
    lengths: tuple[int, ...]
    first: int
    spans: Mapping[str, range]
    device: torch.device
    threads: int | None
    scratch: Path
    split: bool = True
    memory: MemoryRun | None = None
    predicted_peak_rss: int | None = None
    twin: bool = False
    progress: Progress = QUIET


@dataclass(frozen=True)
class GraphCheck:
    """One way to run the file: ``relative_rms`` of the logits' error against torch, over that of
    the logits; None where it cannot be run that way, and ``note`` says why."""

    way: str
    relative_rms: float | None
    note: str | None = None


@dataclass(frozen=True)
class Findings:
    """What else a judge found out; None or nothing where it does not look.

    ``tokenizer_agrees``: whether the file's own tokenizer gives the reference's ids. Peaks in bytes
    are of one run, of what ``measured_as`` names.
    """

    tokenizer_agrees: bool | None = None
    graph_checks: tuple[GraphCheck, ...] = ()
    predicted_peak_rss: int | None = None
    measured_peak_rss: int | None = None
    measured_as: str | None = None


@dataclass(frozen=True)
class Judge:
    """A written file as it runs. ``through``: what runs it; ``step``: whose share of the loss that
    is, its runtime's, or the export's where the arithmetic is of the export's making (graphs).

    ``open`` gives the logits, float32 [positions from ``first`` on, vocab], of each sequence of the
    request, in order; it is called when the reference has run.
    """

    through: str
    open: Callable[[], AbstractContextManager[Iterable[torch.Tensor]]]
    step: Literal["runtime", "export"] = "runtime"
    findings: Findings = field(default_factory=Findings)


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

    def width_limits(self, options: ExportOptions) -> WidthLimits:
        """The expert widths that it can write; most formats have no limits."""
        ...

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

    def recognise(self, path: Path) -> Path | None:
        """The file or directory that `write` made and ``path`` names; None for anything else.

        A look at names and first bytes: what is wrong with it shows when it is read or run.
        """
        ...

    def sequence_limit(self, path: Path) -> int | None:
        """The longest sequence, in tokens, that the written ``path`` can hold; None: any."""
        ...

    def judge(self, path: Path, request: JudgeRequest) -> Judge:
        """The written ``path`` as it runs. What is wrong shows here, before the reference runs.

        Raises UserError when it does not run, or is not of the reference's model.
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


# Formats that people ask for and no exporter writes: what to take instead.
_INSTEAD = {
    "mlx": "--layout merged, a GGUF that llama.cpp runs on a Mac; docs/platforms.md says why",
    "safetensors": "tenp-edge compress, which writes OUT/checkpoint in safetensors",
}


def exporter(name: str) -> Exporter:
    """The exporter for format ``name`` ("gguf"); UserError with the list when there is none."""
    installed = _installed()
    if name not in installed:
        formats = "|".join(sorted(installed)) or "none is installed"
        hint = _INSTEAD.get(name.lower(), f"--format {formats}")
        raise UserError(f"no exporter for format '{name}'", hint)
    loaded: Exporter = installed[name].load()
    return loaded


def recognise(path: Path) -> tuple[Path, Exporter] | None:
    """What an exporter wrote at ``path``, or under its own name in the directory of a compress run;
    with the exporter. None where no installed one knows it."""
    output = path.is_dir() and not (path / "config.json").is_file()
    for point in _installed().values():
        writer: Exporter = point.load()
        for place in (path, path / writer.target) if output else (path,):
            recognised = writer.recognise(place)
            if recognised is not None:
                return recognised, writer
    return None


def _installed() -> dict[str, EntryPoint]:
    """By the name of the format, in the order of the names."""
    return _on_path(tuple(sys.path))


@lru_cache(maxsize=1)
def _on_path(_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    # The metadata of every distribution is read for it: a plan asks some thirty times.
    points = sorted(entry_points(group="tenp_edge.exporters"), key=lambda point: point.name)
    return {point.name: point for point in points}


def measured_quants(writer: Exporter) -> tuple[str, ...]:
    """The types whose loss can be measured; none where the exporter is no `Requantiser`."""
    return writer.measured_quants if isinstance(writer, Requantiser) else ()


def placed_files(writer: Exporter, manifest: Manifest) -> dict[str, int]:
    """The manifest's files as a compress run places them: a directory's lie under its name."""
    return {
        name if name == writer.target else f"{writer.target}/{name}": nbytes
        for name, nbytes in manifest.files.items()
    }


@contextmanager
def manifest_file(target: Path, nbytes: int) -> Iterator[BinaryIO]:
    """A file of exactly ``nbytes`` to write in any order; ``target`` exists only after success.

    Raises UserError when the disk has no room, before the first byte or when it fills up. What a
    killed run left behind is overwritten by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    require_free(target.parent, nbytes, target.name)
    with atomic_file(target, nbytes) as stream:
        stream.truncate(nbytes)
        yield stream
        assert stream.seek(0, 2) == nbytes, "the writer left the manifest"

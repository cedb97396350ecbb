"""The ONNX exporter: check, manifest, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, StoredModel
from tenp_edge.checkpoint.tensor_types import AUTO, TensorTypes
from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import (
    NO_DATA,
    ExportData,
    Exporter,
    ExportOptions,
    Judge,
    JudgeRequest,
    Manifest,
    ManifestTensor,
    WidthLimits,
    manifest_file,
)
from tenp_edge.exporters.mixing import LayoutRules, SampledRows, TypedMatrix
from tenp_edge.exporters.onnx.files.blueprint import Blueprint
from tenp_edge.exporters.onnx.files.companions import NO_DIGEST, Genai, companion_files, tenp_file
from tenp_edge.exporters.onnx.files.data_file import data_writer
from tenp_edge.exporters.onnx.files.reading import OnnxWeights
from tenp_edge.exporters.onnx.files.stored import data_files
from tenp_edge.exporters.onnx.files.whole_directory import require_writable, whole_directory
from tenp_edge.exporters.onnx.fixed_lengths import fixed_lengths
from tenp_edge.exporters.onnx.limits import check_model
from tenp_edge.exporters.onnx.linear.mixed import FLOATS, MIXED_TYPES, Columns, type_names
from tenp_edge.exporters.onnx.mixes import (
    check_alike,
    check_types,
    rounded,
    sampled_matrices,
    tensor_bytes,
    typed_matrices,
    types_of,
)
from tenp_edge.exporters.onnx.modes import (
    FIXED_MODES,
    MODES,
    QUANTS,
    check_mode,
    mode_of,
    rules_of,
    way_of,
)
from tenp_edge.exporters.onnx.rounded_source import RoundedWeights
from tenp_edge.exporters.onnx.run_memory import encoding_speed, run_memory, run_notes
from tenp_edge.models import ModelConfig, state_bytes
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.memory.footprint import MemoryRun, PlannedRun, RunMemory
from tenp_edge.runtime.onnx.directory import holds_onnx, read_directory


class OnnxExporter:
    """``layouts`` are the modes: who is to run the graph decides how it is written."""

    format = "onnx"
    layouts = MODES
    fixed_layouts = FIXED_MODES
    quants = QUANTS
    weighted_quants: tuple[str, ...] = (AUTO,)
    automatic_quants = QUANTS
    measured_quants: tuple[str, ...] = ()
    mixed_types = MIXED_TYPES
    probed_quant = "int4"
    default_quant = "none"
    kv_types: tuple[str, ...] = ("F32",)
    target = "onnx"

    def width_limits(self, options: ExportOptions) -> WidthLimits:
        """What the planner keeps to."""
        check_mode(options)
        return way_of(options).widths

    def check(self, config: ModelConfig, options: ExportOptions) -> None:
        """Raise UserError when the model, mode or quantisation cannot be written."""
        check_mode(options)
        if options.quant == AUTO:
            check_types(config, options)
            check_alike(options)
        check_model(config, options)

    def manifest(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions
    ) -> Manifest:
        """Every tensor and the exact size of every file, without reading a weight."""
        self.check(config, options)
        return _manifest(Blueprint(config, options), checkpoint)

    def write(
        self,
        source: ModelSource,
        options: ExportOptions,
        target: Path,
        data: ExportData = NO_DATA,
        progress: Progress = QUIET,
    ) -> Manifest:
        """Write the directory ``target`` as `manifest` says; it appears only when it is whole."""
        self.check(source.config, options)
        require_writable(target)
        _require_ranges(options, data)
        imatrix = data.imatrix if options.imatrix else None
        blueprint = Blueprint(source.config, options, data.ranges, imatrix)
        manifest = _manifest(blueprint, source.checkpoint)
        require_free(target.parent, manifest.file_bytes, target.name)
        with whole_directory(target) as directory:
            _write_weights(blueprint, source, directory, progress)
            small = _small_files(blueprint, source.checkpoint, _digest(source), source.planned_run)
            for name, content in small.items():
                with manifest_file(directory / name, manifest.files[name]) as stream:
                    stream.write(content)
        return manifest

    def run_memory(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, run: MemoryRun
    ) -> RunMemory:
        """An estimate, upper where it must err: onnxruntime cannot be asked."""
        if way_of(options).static:
            options = replace(options, lengths=fixed_lengths(config, options))
        stored = Blueprint(config, options).stored
        return run_memory(config, options, list(stored.values()), run)

    def needs_ranges(self, options: ExportOptions) -> bool:
        return way_of(options).calibrated

    def encoding_speed(self, options: ExportOptions) -> float:
        """Of the quantisation, or of laying float32 out; on one thread, as it is written."""
        return encoding_speed(self.probed_quant if options.quant == AUTO else options.quant)

    def recognise(self, path: Path) -> Path | None:
        """A directory with graphs, also named by one of them."""
        if path.suffix == ".onnx":
            return path.parent
        return path if holds_onnx(path) else None

    def sequence_limit(self, path: Path) -> int | None:
        """The model's positions, or what graphs of fixed shapes hold."""
        return read_directory(path).context

    def judge(self, path: Path, request: JudgeRequest) -> Judge:
        """In onnxruntime."""
        from tenp_edge.exporters.onnx.judging import judge  # needs transformers, writing does not

        return judge(path, request)

    def read_back(self, path: Path, config: ModelConfig) -> StoredModel:
        """The weights of the directory ``path``, read where they lie."""
        return OnnxWeights(path, config)

    def requantised(
        self, source: ModelSource, options: ExportOptions, data: ExportData = NO_DATA
    ) -> RoundedWeights:
        """The weights that a directory of a plan's own types would hold, decoded, unwritten."""
        check_types(source.config, options)
        assert options.types is not None
        columns = Columns(data.imatrix if options.imatrix else None)
        return RoundedWeights(source, options.types, columns)

    # -- types of a plan's own (`mixing.Mixer`) ----------------------------------------------------

    def rules(self, layout: str) -> LayoutRules:
        return rules_of(layout or MODES[0])

    def legal_type(self, type: str, columns: int) -> str:
        """Rows of any length are filled up to whole blocks."""
        return type

    def tensor_bytes(self, rows: int, columns: int, type: str) -> int:
        """Of codes and their scales, or of floats."""
        return tensor_bytes(rows, columns, type)

    def needs_importance(self, type: str) -> bool:
        return False

    def constant_bytes(self, hidden: int) -> int:
        """Never asked: no layout holds experts without neurons (`rules`)."""
        raise NotImplementedError

    def typed_matrices(
        self, config: ModelConfig, options: ExportOptions
    ) -> tuple[TypedMatrix, ...]:
        """Whatever linear layers outside the routed experts multiply by, but routers and gates."""
        return typed_matrices(config)

    def types_of(self, config: ModelConfig, options: ExportOptions) -> TensorTypes:
        """One for all."""
        return types_of(config, options.quant)

    def rounded(self, sample: SampledRows, type: str) -> torch.Tensor:
        return rounded(sample, type)

    def sampled_matrices(
        self, source: ModelSource, options: ExportOptions, data: ExportData, rows: int
    ) -> Iterator[tuple[TypedMatrix, SampledRows]]:
        return sampled_matrices(source, options, data, rows)


def _require_ranges(options: ExportOptions, data: ExportData) -> None:
    if way_of(options).calibrated and data.ranges is None:
        raise UserError(
            f"--mode {mode_of(options)} --quant {options.quant} has fixed scales for activations, "
            "whose ranges were not measured",
            "tenp-edge export, which measures them, or --quant none",
        )


def _write_weights(
    blueprint: Blueprint, source: ModelSource, directory: Path, progress: Progress
) -> None:
    total = sum(stored.nbytes for stored in blueprint.stored.values())
    with (
        progress.task("writing ONNX weights", total, "bytes") as task,
        data_writer(directory, blueprint.places, blueprint.stored) as writer,
    ):
        for fill in blueprint.fills:
            fill.run(source, writer)
            task.advance(sum(blueprint.stored[name].nbytes for name in fill.names))


def _manifest(blueprint: Blueprint, checkpoint: Checkpoint) -> Manifest:
    options = blueprint.options

    def sizes() -> dict[str, int]:
        small = _small_files(blueprint, checkpoint, NO_DIGEST)
        return data_files(blueprint.places) | {name: len(data) for name, data in small.items()}

    return Manifest(
        format="onnx",
        layout=mode_of(options),
        quant=options.quant,
        tensors=_tensors(blueprint),
        files=LazySizes(sizes),
        notes=run_notes(options, mode_of(options)),
    )


def _tensors(blueprint: Blueprint) -> tuple[ManifestTensor, ...]:
    """Where a plan says the types, by its names of them."""
    found = [stored.manifest() for stored in blueprint.stored.values()]
    if blueprint.options.types is None:
        return tuple(found)
    types = type_names(tensor.name for tensor in found)
    return tuple(replace(tensor, type=types.get(tensor.name, FLOATS)) for tensor in found)


def _small_files(
    blueprint: Blueprint, checkpoint: Checkpoint, digest: str, run: PlannedRun | None = None
) -> dict[str, bytes]:
    """The graphs and their companions by name; tenp.json, which lists the others, comes last."""
    config, options = blueprint.config, blueprint.options
    graphs = {**blueprint.graphs, **blueprint.reports}
    sizes = {name: len(data) for name, data in graphs.items()} | data_files(blueprint.places)
    way, counts_keys = way_of(options), way_of(options).makers.counts_keys(config)
    lengths = fixed_lengths(config, options) if way.static else None
    mode, padding = mode_of(options), not counts_keys
    given = lengths, run, options.types
    tenp = tenp_file(config, mode, options.quant, sizes, padding, digest, *given)
    # onnxruntime-genai can hold neither a latent nor a state of our names.
    other = way.static or options.latent_cache or state_bytes(config.mixers) > 0
    genai = None if other else Genai(shares_cache=counts_keys)
    companions = companion_files(checkpoint, config, genai, digest)
    return {**graphs, **companions, "tenp.json": tenp}


def _digest(source: ModelSource) -> str:
    """The pruned model's, also where the checkpoint was pruned before."""
    return source.digest or NO_DIGEST


class LazySizes(Mapping[str, int]):
    """Name -> bytes, computed when first asked for: a graph takes seconds to build, and planning
    asks for the weights of dozens of them."""

    def __init__(self, compute: Callable[[], dict[str, int]]) -> None:
        self._compute = compute

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return self._compute()

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        return repr(self._sizes)


EXPORTER: Exporter = OnnxExporter()

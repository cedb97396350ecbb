"""The GGUF exporter: check, manifest, write."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, StoredModel
from tenp_edge.checkpoint.tensor_types import AUTO, TensorTypes
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import (
    KEEP,
    NO_DATA,
    ExportData,
    Exporter,
    ExportOptions,
    Judge,
    JudgeRequest,
    Manifest,
    WidthLimits,
    manifest_file,
)
from tenp_edge.exporters.gguf.architectures import check_architecture, rounding_notes
from tenp_edge.exporters.gguf.encoding import encoding_speed
from tenp_edge.exporters.gguf.fake_quant import Requantised
from tenp_edge.exporters.gguf.fields import Field, header, header_bytes, padded
from tenp_edge.exporters.gguf.general import general_fields
from tenp_edge.exporters.gguf.imatrix_file import write_imatrix
from tenp_edge.exporters.gguf.layout import LAYOUTS, Entry, entries, type_notes
from tenp_edge.exporters.gguf.metadata import Recipe, model_fields, recipe_of
from tenp_edge.exporters.gguf.mixes import (
    MIXED_TYPES,
    check_types,
    mostly,
    tensor_bytes,
    typed_matrices,
    types_of,
)
from tenp_edge.exporters.gguf.reading import GgufModel
from tenp_edge.exporters.gguf.recipes import TypeRecipe, parse_rules
from tenp_edge.exporters.gguf.sampling import rounded, sampled_matrices
from tenp_edge.exporters.gguf.source.kept_bytes import KeptBytes, SourceTypes
from tenp_edge.exporters.gguf.source.kept_fields import with_source_fields
from tenp_edge.exporters.gguf.source.opening import open_source
from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields
from tenp_edge.exporters.gguf.types import (
    AUTOMATIC_QUANTS,
    FILE_TYPES,
    MEASURED_QUANTS,
    QUANTS,
    TYPES,
    WEIGHTED_QUANTS,
    legal_type,
)
from tenp_edge.exporters.gguf.writer import ColumnWeights, TensorWriter
from tenp_edge.exporters.mixing import LayoutRules, SampledRows, TypedMatrix
from tenp_edge.models import ModelConfig
from tenp_edge.models.other_formats import OpenedSource
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.child import ChildError
from tenp_edge.runtime.gguf.file_origin import LAYOUT
from tenp_edge.runtime.memory.footprint import MemoryRun, RunMemory
from tenp_edge.runtime.memory.peak import known_peak

_log = logging.getLogger(__name__)
_NAME_BYTES = 64  # of a tensor, with its shape and place


class GgufExporter:
    """``layouts``: per-expert is ours, merged and padded load in any llama.cpp."""

    format = "gguf"
    layouts = LAYOUTS
    fixed_layouts: tuple[str, ...] = ()
    quants = QUANTS
    weighted_quants = (*WEIGHTED_QUANTS, AUTO, KEEP)
    automatic_quants = AUTOMATIC_QUANTS
    measured_quants = MEASURED_QUANTS
    mixed_types = MIXED_TYPES
    probed_quant = "Q3_K_M"
    default_quant = "Q8_0"
    kv_types: tuple[str, ...] = ()
    target = "model.gguf"

    def width_limits(self, options: ExportOptions) -> WidthLimits:
        """Any width: a type whose blocks rows do not fill falls back to one that they do."""
        if options.quant == AUTO:  # Whoever chose the types saw to the widths.
            return WidthLimits()
        return WidthLimits(block=TYPES[FILE_TYPES[options.quant].default].block)

    def check(self, config: ModelConfig, options: ExportOptions) -> None:
        """Raise UserError when the model, layout or type cannot be written."""
        layout = self.layout(config, options)
        if layout not in self.layouts:
            raise UserError(f"GGUF has no layout '{layout}'", f"--layout {'|'.join(self.layouts)}")
        self._check_types(config, options, layout)
        for flag, value in (
            ("--latent-cache", options.latent_cache),
            ("--shard-size", options.shard_bytes),
            ("--batch, --length or --past", options.lengths),
            ("--target", options.targets),
        ):
            if value:
                raise UserError(f"{flag} is for ONNX; a GGUF has no use for it", "leave it out")
        if config.constants and layout != LAYOUT:
            raise UserError(
                f"the {layout} layout cannot hold experts that give a constant",
                "--layout per-expert, or plan again with this layout",
            )
        check_architecture(config)
        parse_rules(options.tensor_types)
        if layout == "merged" and not config.is_uniform:
            widths = {width for row in config.expert_widths.values() for width in row}
            raise UserError(
                f"the merged layout needs one expert width, this model has {len(widths)}: "
                f"{_shown(widths)}",
                "--layout per-expert or padded; or compress again with --layout merged",
            )

    def _check_types(self, config: ModelConfig, options: ExportOptions, layout: str) -> None:
        if options.types is not None:
            one_type = self.rules(layout).one_type
            check_types(options.types, config, one_type=one_type, imatrix=options.imatrix)
        elif options.quant == AUTO:
            raise UserError(
                "--quant auto writes the types that a plan chose, and there is no plan with types",
                "--plan PLAN (tenp-edge calibrate MODEL --types -o WORK; tenp-edge plan MODEL "
                "--ram SIZE --calibration WORK -o PLAN), or --quant Q4_K_M",
            )
        elif options.quant not in (*self.quants, KEEP):
            raise UserError(
                f"GGUF has no tensor type '{options.quant}'", f"--quant {'|'.join(self.quants)}"
            )
        elif TYPES[FILE_TYPES[options.quant].default].needs_importance and not options.imatrix:
            raise UserError(
                f"{options.quant} needs an importance matrix",
                "--calibration WORK (tenp-edge calibrate MODEL -o WORK) "
                "without --no-imatrix, or --quant Q2_K",
            )

    def layout(self, config: ModelConfig, options: ExportOptions) -> str:
        """The layout asked for, or the default: per-expert only where widths differ."""
        return options.layout or ("merged" if config.is_uniform else "per-expert")

    def manifest(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions
    ) -> Manifest:
        """Every tensor and the exact size of the file, without reading a weight."""
        self.check(config, options)
        layout = self.layout(config, options)
        tensors = entries(config, layout, _types(checkpoint, config, options))
        fields = _fields(checkpoint, config, options, tensors, layout, Recipe())
        start = header_bytes(fields, ((e.tensor.name, len(e.tensor.shape)) for e in tensors))
        return _manifest(config, tensors, start, layout, options.quant)

    def write_outline(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, target: Path
    ) -> Path:
        """The file without a weight: its header, and a hole of the size of the rest. A runtime can
        open it and say what running it takes."""
        self.check(config, options)
        layout = self.layout(config, options)
        tensors = entries(config, layout, _types(checkpoint, config, options))
        head = _header(tensors, _fields(checkpoint, config, options, tensors, layout, Recipe()))
        with target.open("wb") as stream:
            stream.write(head)
            stream.truncate(_manifest(config, tensors, len(head), layout, options.quant).file_bytes)
        return target

    def write(
        self,
        source: ModelSource,
        options: ExportOptions,
        target: Path,
        data: ExportData = NO_DATA,
        progress: Progress = QUIET,
    ) -> Manifest:
        """Write ``target`` as `manifest` says; it appears only when it is complete."""
        if data.imatrix is None and (options.imatrix or options.imatrix_file):
            raise UserError(
                "an importance matrix needs calibration statistics",
                "--calibration WORK, or --no-imatrix",
            )
        manifest = self.manifest(source.checkpoint, source.config, options)
        kept = KeptBytes(source) if options.quant == KEEP else None
        types = _types(source.checkpoint, source.config, options)
        tensors = entries(source.config, manifest.layout, types)
        if kept is not None and not options.imatrix:
            kept.require_no_importance(tensors)
        recipe = recipe_of(source)
        fields = _fields(
            source.checkpoint, source.config, options, tensors, manifest.layout, recipe
        )
        head = _header(tensors, fields)
        with manifest_file(target, manifest.file_bytes) as stream:
            stream.write(head)
            with (
                progress.task(f"writing {target.name}", manifest.weight_bytes, "bytes") as task,
                TensorWriter(
                    stream,
                    source,
                    tensors,
                    len(head),
                    _weighing(options, data),
                    kept,
                ) as writer,
            ):
                writer.write(tensors, task)
        if options.imatrix_file is not None and data.imatrix is not None:
            write_imatrix(source.config, data.imatrix, tensors, Path(options.imatrix_file))
        return manifest

    def requantised(
        self, source: ModelSource, options: ExportOptions, data: ExportData = NO_DATA
    ) -> Requantised:
        """The weights that a file of ``source`` would hold, decoded, without writing it."""
        self.check(source.config, options)
        layout = self.layout(source.config, options)
        types = _types(source.checkpoint, source.config, options)
        tensors = entries(source.config, layout, types)
        return Requantised(source, tensors, _weighing(options, data))

    def open_source(self, path: Path) -> OpenedSource | None:
        """A GGUF of a family that is known, of any program's."""
        return open_source(path)

    def recognise(self, path: Path) -> Path | None:
        """A file of that name or beginning."""
        if not path.is_file():
            return None
        return path if path.suffix == ".gguf" or _first_bytes(path, 4) == b"GGUF" else None

    def sequence_limit(self, path: Path) -> int | None:
        """None: the KV cache is made for the run."""
        return None

    def judge(self, path: Path, request: JudgeRequest) -> Judge:
        """In the runtime that runs such a file."""
        from tenp_edge.exporters.gguf.judging import judge  # needs transformers, writing does not

        return judge(path, request)

    def read_back(self, path: Path, config: ModelConfig) -> StoredModel:
        """The weights of ``path``, of any layout, decoded by ggml."""
        return GgufModel(path, config)

    def run_memory(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, run: MemoryRun
    ) -> RunMemory | None:
        """The answer of the runtime that this file would run in, from its outline."""
        with tempfile.TemporaryDirectory(prefix="tenp-edge-") as directory:
            file = Path(directory) / "outline.gguf"
            try:
                return known_peak(self.write_outline(checkpoint, config, options, file), run)
            except (ChildError, OSError) as error:
                _log.warning("memory is estimated: the runtime could not be asked (%s)", error)
                return None

    def needs_ranges(self, options: ExportOptions) -> bool:
        """Activations are quantised as they come."""
        return False

    # -- types of a plan's own (`mixing.Mixer`) ----------------------------------------------------

    def legal_type(self, type: str, columns: int) -> str:
        """``type``, or its first fallback whose blocks divide ``columns``."""
        return legal_type(type, columns)

    def tensor_bytes(self, rows: int, columns: int, type: str) -> int:
        """Of a matrix in the file, in the type that its rows allow."""
        return tensor_bytes(rows, columns, type)

    def needs_importance(self, type: str) -> bool:
        """As llama.cpp has it."""
        return TYPES[type].needs_importance

    def rules(self, layout: str) -> LayoutRules:
        """All but ours stack the experts of a layer; where each has its own tensors, one may have
        none."""
        return LayoutRules(one_type=layout != LAYOUT, holds_empty=layout == LAYOUT)

    def constant_bytes(self, hidden: int) -> int:
        """A vector of float32, and about what names it."""
        return tensor_bytes(1, hidden, "F32") + _NAME_BYTES

    def typed_matrices(
        self, config: ModelConfig, options: ExportOptions
    ) -> tuple[TypedMatrix, ...]:
        """Every matrix outside the routed experts but the routers."""
        layout = self.layout(config, options)
        return typed_matrices(entries(config, layout, TypeRecipe(config, "F16")))

    def types_of(self, config: ModelConfig, options: ExportOptions) -> TensorTypes:
        """llama.cpp's mix of the name ``options.quant``."""
        self.check(config, options)
        rules = parse_rules(options.tensor_types)
        recipe = TypeRecipe(config, options.quant, options.imatrix, rules)
        found = entries(config, self.layout(config, options), recipe)
        return types_of(found, {layer: len(row) for layer, row in config.expert_widths.items()})

    def rounded(self, sample: SampledRows, type: str) -> torch.Tensor:
        """By ggml's own quantiser."""
        return rounded(sample, type)

    def sampled_matrices(
        self, source: ModelSource, options: ExportOptions, data: ExportData, rows: int
    ) -> Iterator[tuple[TypedMatrix, SampledRows]]:
        """In the file's form: some are stored transposed or split."""
        layout = self.layout(source.config, options)
        found = entries(source.config, layout, TypeRecipe(source.config, "F16"))
        weights = ColumnWeights(source.config, _weighing(options, data))
        return sampled_matrices(source, found, weights, rows)

    def encoding_speed(self, options: ExportOptions) -> float:
        """Of the file's commonest tensor type, on all threads."""
        kind = TYPES[_commonest(options)]
        weighted = options.imatrix and kind.weighs_columns
        ones = torch.ones if weighted else lambda length: None
        return encoding_speed(lambda rows: kind.encode(rows, ones(rows.shape[-1])))


def _weighing(options: ExportOptions, data: ExportData) -> Importance | None:
    """What weighs the columns: the importance matrix may also be there only to be written."""
    return data.imatrix if options.imatrix else None


def _commonest(options: ExportOptions) -> str:
    if options.types is None:
        return FILE_TYPES[options.quant].default
    rows = options.types.gate_up.values()
    return Counter(chain.from_iterable(rows)).most_common(1)[0][0]


def _first_bytes(file: Path, count: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(count)


def _types(checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions) -> TypeRecipe:
    rules = parse_rules(options.tensor_types)
    kept = SourceTypes(checkpoint) if options.quant == KEEP else None
    return TypeRecipe(config, options.quant, options.imatrix, rules, options.types, kept)


def _fields(
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: ExportOptions,
    found: list[Entry],
    layout: str,
    recipe: Recipe,
) -> list[Field]:
    mixed = options.types is not None
    file_type = mostly(found) if mixed else FILE_TYPES[options.quant].file_type
    named = general_fields(checkpoint, config, file_type)
    fields = model_fields(config, layout, file_type, recipe, named)
    if checkpoint.is_file:
        return with_source_fields(checkpoint.path, fields, same_types=options.quant == KEEP)
    return fields + list(tokenizer_fields(checkpoint.path, config))


def _header(found: list[Entry], fields: list[Field]) -> bytes:
    tensors = [entry.tensor for entry in found]
    return header(fields, [(t.name, t.shape, TYPES[t.type].ggml_id, t.nbytes) for t in tensors])


def _manifest(
    config: ModelConfig, found: list[Entry], start: int, layout: str, quant: str
) -> Manifest:
    size = start + sum(padded(entry.tensor.nbytes) for entry in found)
    stock = () if layout == LAYOUT else rounding_notes(config)
    return Manifest(
        format="gguf",
        layout=layout,
        quant=quant,
        tensors=tuple(entry.tensor for entry in found),
        files={"model.gguf": size},
        notes=type_notes(found) + stock,
    )


def _shown(widths: set[int]) -> str:
    ordered = sorted(widths)
    if len(ordered) <= 6:
        return ", ".join(map(str, ordered))
    return f"{ordered[0]}, {ordered[1]}, ... {ordered[-1]}"


EXPORTER: Exporter = GgufExporter()

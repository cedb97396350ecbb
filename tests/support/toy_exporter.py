"""A whole third-party export format in a few lines: bytes by a simple rule, found by entry point.

Every tensor takes 2 bytes an element ("WIDE") or 1 ("NARROW"), plus 64 bytes a tensor; the file
has a header of 1000 bytes. Layout "merged" takes one expert width, as stock llama.cpp does.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from support.installed import install_exporter

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, StoredModel
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import (
    NO_DATA,
    ExportData,
    ExportOptions,
    Judge,
    JudgeRequest,
    Manifest,
    ManifestTensor,
    WidthLimits,
)
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.memory.footprint import MemoryRun

BYTES = {"WIDE": 2, "NARROW": 1}
HEADER = 1000


class ToyExporter:
    format = "toy"
    layouts = ("per-expert", "merged")
    fixed_layouts = ()
    quants = ("WIDE", "NARROW")
    weighted_quants = ()
    automatic_quants = ()
    default_quant = "WIDE"
    kv_types = ()
    target = "model.toy"

    def width_limits(self, options: ExportOptions) -> WidthLimits:
        return WidthLimits()

    def check(self, config: ModelConfig, options: ExportOptions) -> None:
        if options.layout == "merged" and not config.is_uniform:
            raise UserError("merged takes one width")

    def manifest(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions
    ) -> Manifest:
        self.check(config, options)
        tensors = tuple(
            ManifestTensor(
                spec.name,
                spec.shape,
                options.quant,
                prod(spec.shape) * BYTES[options.quant] + 64,
                "routed experts" if spec.expert is not None else "other",
            )
            for spec in expected_tensors(config)
        )
        size = HEADER + sum(tensor.nbytes for tensor in tensors)
        layout = options.layout or self.layouts[0]
        return Manifest("toy", layout, options.quant, tensors, {"model.toy": size})

    def write(
        self,
        source: ModelSource,
        options: ExportOptions,
        target: Path,
        data: ExportData = NO_DATA,
        progress: Progress = QUIET,
    ) -> Manifest:
        raise NotImplementedError("plans are priced, not written")

    def recognise(self, path: Path) -> Path | None:
        return None

    def sequence_limit(self, path: Path) -> int | None:
        return None

    def judge(self, path: Path, request: JudgeRequest) -> Judge:
        raise NotImplementedError("nothing was written")

    def read_back(self, path: Path, config: ModelConfig) -> StoredModel:
        raise NotImplementedError("nothing was written")

    def run_memory(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, run: MemoryRun
    ) -> None:
        return None

    def needs_ranges(self, options: ExportOptions) -> bool:
        """Activations are quantised as they come."""
        return False

    def encoding_speed(self, options: ExportOptions) -> float:
        return 1e9


EXPORTER = ToyExporter()


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution that declares the format on the path, as pip would."""
    install_exporter(directory, monkeypatch, "toy", "support.toy_exporter:EXPORTER")

"""A third party's format that is written, read back and run: plain transformers checkpoints.

    plain/config.json          the config with the experts' new width
    plain/model.safetensors    every tensor under its on-disk name, as it is
    plain/plan.txt             the digest of the plan

Transformers knows one expert width, so that is the format's limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.references import reference_model

from tenp_edge.checkpoint.files import Checkpoint, TensorEntry, plan_shards, write_shards
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
from tenp_edge.exporters.session_judging import require_sizes
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.memory.footprint import MemoryRun

_LONGEST = 40


class PlainExporter:
    format = "plain"
    layouts = ("one-width",)
    fixed_layouts: tuple[str, ...] = ()
    quants = ("F32",)
    weighted_quants: tuple[str, ...] = ()
    automatic_quants: tuple[str, ...] = ()
    default_quant = "F32"
    kv_types: tuple[str, ...] = ()
    target = "plain"

    def width_limits(self, options: ExportOptions) -> WidthLimits:
        return WidthLimits(most=1)

    def check(self, config: ModelConfig, options: ExportOptions) -> None:
        if not config.is_uniform:
            raise UserError("a plain checkpoint has experts of one width")

    def manifest(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions
    ) -> Manifest:
        self.check(config, options)
        entries = [TensorEntry(spec.name, "F32", spec.shape) for spec in expected_tensors(config)]
        (shard,) = plan_shards(entries)
        tensors = tuple(ManifestTensor(e.name, e.shape, "F32", e.nbytes, "other") for e in entries)
        sizes = {shard.name: shard.nbytes, "config.json": len(_config(config)), "plan.txt": 64}
        return Manifest("plain", "one-width", "F32", tensors, sizes)

    def write(
        self,
        source: ModelSource,
        options: ExportOptions,
        target: Path,
        data: ExportData = NO_DATA,
        progress: Progress = QUIET,
    ) -> Manifest:
        manifest = self.manifest(source.checkpoint, source.config, options)
        target.mkdir()
        entries = [TensorEntry(t.name, "F32", t.shape) for t in manifest.tensors]
        for _ in write_shards(target, plan_shards(entries), source.read):
            pass
        (target / "config.json").write_bytes(_config(source.config))
        (target / "plan.txt").write_text(f"{source.digest or '':64}")
        return manifest

    def recognise(self, path: Path) -> Path | None:
        return path if (path / "plan.txt").is_file() else None

    def sequence_limit(self, path: Path) -> int | None:
        return _LONGEST

    def judge(self, path: Path, request: JudgeRequest) -> Judge:
        model: Any = reference_model(
            path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        vocab = request.reference.config.vocab_size, model.config.vocab_size
        require_sizes(path, {"vocab_size": vocab})

        @contextmanager
        def opened() -> Iterator[Iterator[torch.Tensor]]:
            with torch.no_grad():
                rows = zip(request.tokens, request.lengths, strict=True)
                yield (model(row[None, :n]).logits[0, request.first :] for row, n in rows)

        return Judge("plain transformers", opened)

    def read_back(self, path: Path, config: ModelConfig) -> StoredModel:
        return PlainModel(Checkpoint(path))

    def run_memory(
        self, checkpoint: Checkpoint, config: ModelConfig, options: ExportOptions, run: MemoryRun
    ) -> None:
        return None

    def needs_ranges(self, options: ExportOptions) -> bool:
        return False

    def encoding_speed(self, options: ExportOptions) -> float:
        return 1e9


class PlainModel(ModelSource):
    @property
    def plan_digest(self) -> str | None:
        return (self.checkpoint.path / "plan.txt").read_text().strip() or None


def _config(config: ModelConfig) -> bytes:
    width = next(iter(config.expert_widths.values()))[0]
    return json.dumps(dict(config.raw) | {"moe_intermediate_size": width}).encode()


EXPORTER = PlainExporter()

"""A row's file as it runs here: written, timed, its peak memory measured, deleted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.matched.filled import Filled
from tenp_edge.exporters.base import ExportData, Exporter
from tenp_edge.runtime.bench import bench
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import measure_peak_rss
from tenp_edge.runtime.opening import RunOptions

PROMPT_TOKENS, GENERATED_TOKENS, REPEATS = 256, 64, 5
_CONTEXT = 512


def run_file(
    checkpoint: Checkpoint,
    writer: Exporter,
    filled: Filled,
    statistics: Statistics,
    work: Path,
    threads: int,
) -> dict[str, Any]:
    """Tokens per second and peak bytes of ``filled``, as JSON values; nothing stays in ``work``.

    ``file_bytes`` is what was written: what its manifest promised.
    """
    imatrix = Importance(statistics, filled.plan) if filled.options.imatrix else None
    source = ModelSource(checkpoint, filled.plan, mended=filled.mended)
    file = work / f"row.partial-{writer.target}"
    try:
        writer.write(source, filled.options, file, ExportData(imatrix))
        context = min(_CONTEXT, checkpoint.config.max_position_embeddings)
        prompt = min(PROMPT_TOKENS, context - GENERATED_TOKENS)
        speeds = bench(
            file,
            RunOptions(threads=threads, context=context),
            prompt_tokens=prompt,
            generated_tokens=GENERATED_TOKENS,
            repeats=REPEATS,
        )
        memory = MemoryRun(context, MemoryRun.ubatch, MemoryRun.kv_type, threads)
        return {
            "runtime": speeds.runtime,
            "file_bytes": file.stat().st_size,
            "prefill_tokens_per_second": speeds.prefill_tokens_per_second,
            "decode_tokens_per_second": speeds.decode_tokens_per_second,
            "peak_rss_bytes": measure_peak_rss(file, **asdict(memory)),
            "context": context,
            "threads": threads,
        }
    finally:
        file.unlink(missing_ok=True)

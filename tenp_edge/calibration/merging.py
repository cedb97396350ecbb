"""Statistics of several calibrations added up, domain by domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tenp_edge.calibration.statistics import NEURON_MAXIMA, LayerStatistics
from tenp_edge.calibration.storage import (
    DIGEST,
    Statistics,
    layer_tensors,
    load_statistics,
    write_tensors,
)
from tenp_edge.disk import write_json
from tenp_edge.errors import UserError

# In the JSON of merged statistics: the `data_sha256` of all that were added up.
MERGED = "merged_from"
_MERGE = "tenp-edge merge WORK1 WORK2 -o WORK, of one model, and of different text or seeds"


def merge(left: LayerStatistics, right: LayerStatistics) -> LayerStatistics:
    """Statistics of both token sets together; a sum that one of them lacks is left out."""
    return LayerStatistics(
        {
            name: torch.maximum(value, right[name])
            if name in NEURON_MAXIMA
            else value + right[name]
            for name, value in left.sums.items()
            if name in right.sums
        }
    )


def merge_statistics(parts: Iterable[Statistics], directory: Path) -> Statistics:
    """Add statistics of one model up, domain by domain, and write them to ``directory``."""
    parts = list(parts)
    first = parts[0]
    _require_distinct(parts)
    if any((p.fingerprint, p.layers) != (first.fingerprint, first.layers) for p in parts):
        raise UserError(
            "the statistics belong to different checkpoints and cannot be merged", _MERGE
        )
    domains: dict[str, dict[str, int]] = {}
    for part in parts:
        for name, counts in part.info["domains"].items():
            total = domains.setdefault(name, dict.fromkeys(counts, 0))
            for key, count in counts.items():
                total[key] += count
    directory.mkdir(parents=True, exist_ok=True)
    merged: dict[str, torch.Tensor] = {}
    for layer in first.layers:
        by_domain = {}
        for name in domains:
            layer_stats = [p.layer(name, layer) for p in parts if name in p.domains]
            total_stats = layer_stats[0]
            for other in layer_stats[1:]:
                total_stats = merge(total_stats, other)
            by_domain[name] = total_stats
        merged |= layer_tensors(layer, by_domain, first.weight_norms(layer))
    merged |= _merged_inputs(parts)
    digest = write_tensors(directory / "statistics.safetensors", merged)
    info = {
        **first.info,
        "domains": domains,
        "merged": len(parts),
        "joint": False,
        MERGED: [source for part in parts for source in _sources(part)],
        DIGEST: digest,
    }
    write_json(directory / "statistics.json", info)
    return load_statistics(directory, fresh=True)


def _sources(part: Statistics) -> list[str]:
    """The digests of the texts that ``part`` counted."""
    return list(part.info.get(MERGED) or [part.info["data_sha256"]])


def _require_distinct(parts: Sequence[Statistics]) -> None:
    if len(parts) < 2:
        raise UserError("there is one directory of statistics: nothing to add to it", _MERGE)
    sources = [source for part in parts for source in _sources(part)]
    if len(set(sources)) < len(sources):
        raise UserError("the same text would be counted twice: two of them saw it", _MERGE)


def _merged_inputs(parts: Sequence[Statistics]) -> dict[str, torch.Tensor]:
    """The sums of squared inputs of all parts, of dense layers too, under their stored names."""
    totals: dict[str, torch.Tensor] = {}
    for part in parts:
        for name in part.stored:
            if ".inputs." in name:
                value = part.read(name).double()
                totals[name] = totals[name] + value if name in totals else value
    return {name: value.float() for name, value in totals.items()}

"""Statistics files with chosen contents: the real format, without running a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tenp_edge.calibration.statistics import WEIGHT_NORMS, LayerStatistics, make_empty
from tenp_edge.calibration.storage import (
    DIGEST,
    VERSION,
    Statistics,
    layer_tensors,
    load_statistics,
    write_tensors,
)
from tenp_edge.models import ModelConfig

Edit = Callable[[str, int, LayerStatistics], None]


def random_layer(experts: int, width: int, seed: int, hidden: int = 0) -> LayerStatistics:
    """Sums of random size; every expert was reached by 32 tokens or more."""
    generator = torch.Generator().manual_seed(seed)
    stats = make_empty(experts, width, hidden)
    for value in stats.sums.values():
        value += torch.rand(value.shape, generator=generator, dtype=torch.float64)
    stats["projection"].sub_(0.3)  # signed
    stats["activation_sq"].add_(1)  # above the square of the mean
    stats["tokens"].mul_(200).add_(32).floor_()
    return stats


def write_statistics(
    directory: Path,
    config: ModelConfig,
    fingerprint: str,
    *,
    domains: Sequence[str] = ("code", "prose"),
    edit: Edit | None = None,
) -> Statistics:
    """Random statistics of ``config`` in ``directory``, each layer changed by ``edit``."""
    directory.mkdir(parents=True, exist_ok=True)
    experts, width = config.num_experts, config.moe_intermediate_size
    named: dict[str, torch.Tensor] = {}
    for layer in config.moe_layers:
        generator = torch.Generator().manual_seed(layer)
        norms = {n: torch.rand(experts, width, generator=generator) + 0.5 for n in WEIGHT_NORMS}
        per_domain = {}
        for index, domain in enumerate(domains):
            per_domain[domain] = random_layer(
                experts, width, 100 * layer + index, config.hidden_size
            )
            if edit is not None:
                edit(domain, layer, per_domain[domain])
        named |= layer_tensors(layer, per_domain, norms)
    digest = write_tensors(directory / "statistics.safetensors", named)
    info = {
        "format": "tenp-edge statistics",
        "version": VERSION,
        "fingerprint": fingerprint,
        "layers": list(config.moe_layers),
        "experts": experts,
        "width": width,
        "hidden": config.hidden_size,
        "seq_len": 250,
        "domains": {domain: {"samples": 4, "tokens": 1000} for domain in domains},
        DIGEST: digest,
    }
    (directory / "statistics.json").write_text(json.dumps(info))
    return load_statistics(directory, fingerprint)

"""Calibration statistics: sums over tokens, per domain, layer, expert and neuron.

Everything is a plain sum (or a maximum), so statistics of two runs add up to the statistics of
both, and every score in `saliency` is a function of these sums alone. Notation, per MoE layer and
routed expert: x [tokens, hidden] the tensor it receives, m [tokens, width] = act(gate) * up, and
y [tokens, hidden] = m W_down^T, g [tokens] the weight that multiplies y at dispatch, h the residual
stream before the MoE block. Sums are float64 while they grow, whatever the dtype of the forward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint import (
    TORCH_DTYPES,
    Shard,
    StoredTensor,
    TensorEntry,
    dtype_name,
    read_header,
    read_json,
    read_range,
    write_shards,
    write_text,
)
from tenp_edge.errors import UserError

VERSION = 1
# Sums per expert, [experts]:
EXPERT_SUMS = (
    "tokens",  # 1
    "gate",  # g
    "output_norm",  # |y|
    "output_norm_sq",  # |y|^2
    "gated_norm",  # g |y|
    "tenp",  # g |y| (1 - cos(x, y))
    "tenp_residual",  # g |y| (1 - cos(h, h + g y))
    "easy_ep",  # g |y| max(0, 1 - cos(h, h + sum of the token's routed outputs))
)
# Sums per neuron, [experts, width]; p = m * (y W_down) / |y| is the projected contribution:
NEURON_SUMS = (
    "projection",  # p
    "abs_projection",  # |p|
    "gated_projection",  # g p
    "activation",  # m
    "activation_sq",  # m^2
    "gated_activation_sq",  # (g m)^2
)
NEURON_MAXIMA = ("gated_activation_max",)  # max |g m|
# Norms of the weights, [experts, width]: facts of the model, not of the data.
WEIGHT_NORMS = ("gate_norm", "up_norm", "down_norm")
_EPSILON = 1e-20


@dataclass(frozen=True)
class LayerStatistics:
    """One domain, one layer: name -> float64 [experts] or [experts, width]."""

    sums: Mapping[str, torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.sums[name]


def make_empty(experts: int, width: int) -> LayerStatistics:
    """Statistics of no tokens."""
    per_expert = {name: torch.zeros(experts, dtype=torch.float64) for name in EXPERT_SUMS}
    per_neuron = {
        name: torch.zeros(experts, width, dtype=torch.float64)
        for name in (*NEURON_SUMS, *NEURON_MAXIMA)
    }
    return LayerStatistics({**per_expert, **per_neuron})


def accumulate_expert(
    stats: LayerStatistics,
    expert: int,
    *,
    x: torch.Tensor,
    h: torch.Tensor,
    m: torch.Tensor,
    y: torch.Tensor,
    g: torch.Tensor,
    projected: torch.Tensor,
) -> torch.Tensor:
    """Add the tokens routed to one expert, in place; ``projected`` = y W_down, [tokens, width].

    Returns g |y|, [tokens], which `accumulate_tokens` needs once the token's output is complete.
    """
    x, h, m, y, g, projected = (t.float() for t in (x, h, m, y, g, projected))
    norm = y.norm(dim=-1)
    gated_norm = g * norm
    turned = 1 - torch.cosine_similarity(x, y, dim=-1)
    turned_residual = 1 - torch.cosine_similarity(h, h + g[:, None] * y, dim=-1)
    p = m * projected / norm.clamp_min(_EPSILON)[:, None]
    gated_m = g[:, None] * m
    per_expert = {
        "tokens": torch.ones_like(g),
        "gate": g,
        "output_norm": norm,
        "output_norm_sq": norm.square(),
        "gated_norm": gated_norm,
        "tenp": gated_norm * turned,
        "tenp_residual": gated_norm * turned_residual,
    }
    per_neuron = {
        "projection": p,
        "abs_projection": p.abs(),
        "gated_projection": g[:, None] * p,
        "activation": m,
        "activation_sq": m.square(),
        "gated_activation_sq": gated_m.square(),
    }
    for name, value in (*per_expert.items(), *per_neuron.items()):
        stats[name][expert] += value.sum(dim=0, dtype=torch.float64).cpu()
    peak = stats["gated_activation_max"]
    peak[expert] = torch.maximum(peak[expert], gated_m.abs().amax(dim=0).double().cpu())
    return torch.as_tensor(gated_norm)


def accumulate_tokens(
    stats: LayerStatistics,
    *,
    h: torch.Tensor,
    routed: torch.Tensor,
    experts: torch.Tensor,
    gated_norm: torch.Tensor,
) -> None:
    """Add what needs the token's whole routed output (EASY-EP's shared token weight), in place.

    h, routed: [tokens, hidden]; experts, gated_norm: [tokens, top_k].
    """
    cosine = torch.cosine_similarity(h.float(), h.float() + routed.float(), dim=-1)
    weighted = gated_norm.float() * (1 - cosine).clamp_min(0)[:, None]
    flat = experts.reshape(-1).cpu()
    stats["easy_ep"].index_add_(0, flat, weighted.reshape(-1).double().cpu())


def merge(left: LayerStatistics, right: LayerStatistics) -> LayerStatistics:
    """Statistics of both token sets together."""
    return LayerStatistics(
        {
            name: torch.maximum(value, right[name])
            if name in NEURON_MAXIMA
            else value + right[name]
            for name, value in left.sums.items()
        }
    )


# -- on disk ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """A statistics file: read one layer at a time. ``info`` is its JSON half.

    ``info["domains"]``: name -> {"samples", "tokens"}; ``info["layers"]``: MoE layer indices.
    """

    info: Mapping[str, Any]
    stored: Mapping[str, StoredTensor]

    @property
    def fingerprint(self) -> str:
        return str(self.info["fingerprint"])

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.info["domains"])

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.info["layers"])

    def layer(self, domain: str, layer: int) -> LayerStatistics:
        """All sums of one domain and layer, as float64."""
        prefix = f"{domain}/layers.{layer}."
        names = (*EXPERT_SUMS, *NEURON_SUMS, *NEURON_MAXIMA)
        return LayerStatistics({name: self._read(prefix + name).double() for name in names})

    def weight_norms(self, layer: int) -> dict[str, torch.Tensor]:
        """Row norms of gate and up and column norms of down, float64 [experts, width]."""
        return {name: self._read(f"layers.{layer}.{name}").double() for name in WEIGHT_NORMS}

    def _read(self, name: str) -> torch.Tensor:
        entry = self.stored[name]
        data = read_range(entry.file, entry.offset, entry.nbytes)
        return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)


def load_statistics(directory: Path, fingerprint: str | None = None) -> Statistics:
    """Open DIR/statistics.json and .safetensors; UserError when they are not this model's."""
    info = read_json(directory / "statistics.json")
    if info.get("format") != "tenp-edge statistics" or info.get("version") != VERSION:
        raise UserError(f"{directory} holds no tenp-edge statistics of version {VERSION}")
    if fingerprint is not None and info["fingerprint"] != fingerprint:
        raise UserError(
            f"the statistics in {directory} belong to another checkpoint "
            f"({info['fingerprint'][:12]}, this one is {fingerprint[:12]})",
            "calibrate this model",
        )
    file = directory / "statistics.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing", "calibrate again")
    return Statistics(info, read_header(file))


def layer_tensors(
    layer: int, domains: Mapping[str, LayerStatistics], norms: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """One layer's tensors under their stored names: neuron sums as float32, the rest float64."""
    named = {f"layers.{layer}.{name}": value.float() for name, value in norms.items()}
    for domain, stats in domains.items():
        for name, value in stats.sums.items():
            stored = value if name in EXPERT_SUMS else value.float()
            named[f"{domain}/layers.{layer}.{name}"] = stored
    return named


def write_tensors(file: Path, named: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file, atomically."""
    entries = tuple(TensorEntry(k, dtype_name(v.dtype), tuple(v.shape)) for k, v in named.items())
    file.unlink(missing_ok=True)
    for _ in write_shards(file.parent, [Shard(file.name, entries)], lambda name: named[name]):
        pass


def merge_statistics(parts: Iterable[Statistics], directory: Path) -> Statistics:
    """Add statistics of one model up, domain by domain, and write them to ``directory``."""
    parts = list(parts)
    first = parts[0]
    if any((p.fingerprint, p.layers) != (first.fingerprint, first.layers) for p in parts):
        raise UserError("the statistics belong to different checkpoints and cannot be merged")
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
            found = [p.layer(name, layer) for p in parts if name in p.domains]
            total_stats = found[0]
            for other in found[1:]:
                total_stats = merge(total_stats, other)
            by_domain[name] = total_stats
        merged |= layer_tensors(layer, by_domain, first.weight_norms(layer))
    write_tensors(directory / "statistics.safetensors", merged)
    info = {**first.info, "domains": domains, "merged": len(parts)}
    write_text(directory / "statistics.json", json.dumps(info, indent=1) + "\n")
    return replace(load_statistics(directory))

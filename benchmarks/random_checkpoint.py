"""Write a random checkpoint of any supported family and size, one tensor at a time.

    python benchmarks/random_checkpoint.py qwen1.5-moe-14b DIR        # 28 GB, bf16, sharded
    python benchmarks/random_checkpoint.py qwen1.5-moe-14b DIR --layers 6   # a quarter of it

Tests use `write_random_checkpoint` for their tiny models, the scale benchmarks for big ones.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from published_configs import PUBLISHED

from tenp_edge.checkpoint.files import (
    TORCH_DTYPES,
    TensorEntry,
    dtype_name,
    plan_shards,
    write_shards,
)
from tenp_edge.models import FAMILIES, expected_tensors, read_config
from tenp_edge.models.headers import INDEX_NAME

SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-moe-14b": PUBLISHED["Qwen/Qwen1.5-MoE-A2.7B"][1],
    "qwen3-30b-a3b": PUBLISHED["Qwen/Qwen3-30B-A3B"][1],
}

_BLOCK = 2**22 + 1  # odd, so that a repetition never falls on the same columns
_LARGE = 2**20


@cache
def _noise(gain: float, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_BLOCK, generator=generator).mul_(gain).to(dtype)


def random_tensor(name: str, shape: tuple[int, ...], role: str, dtype: torch.dtype) -> torch.Tensor:
    """Seeded by name: norms near 1, biases small, matrices scaled to keep activations near 1.

    Large matrices are cut from one block of noise at a place that the name decides: drawing
    14 billion normals would take longer than everything the benchmark measures.
    """
    seed = zlib.crc32(name.encode())
    gain = {"router": 2.0, "embed": shape[-1] ** 0.5}.get(role, 1.0) / shape[-1] ** 0.5
    if prod(shape) >= _LARGE:
        block, start = _noise(gain, dtype), seed % _BLOCK
        repeats = -(-(start + prod(shape)) // _BLOCK)
        return block.repeat(repeats)[start : start + prod(shape)].reshape(shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if role == "delta_decay":  # a logarithm: heads that remember ten tokens, and a hundred
        return (-2 - noise.abs()).to(dtype)
    if role.endswith(("norm", "scale")):
        return (1 + 0.1 * noise).to(dtype)
    if role.endswith("bias"):
        return (0.1 * noise).to(dtype)
    return noise.mul_(gain).to(dtype)


def write_random_checkpoint(
    directory: Path,
    raw: Mapping[str, Any],
    *,
    fused: bool = False,
    transposed: bool = False,
    shard_bytes: int = 4 * 10**9,
    embedding_scale: float = 1.0,
) -> Path:
    """Write config.json and random safetensors for config ``raw``; ``fused`` stacks the experts
    the way transformers 5 saves some models, ``transposed`` each matrix,
    the way others are published. ``embedding_scale`` above 1 lets tokens differ more from each
    other than attention makes them alike: every expert is then chosen by some."""
    directory.mkdir(parents=True, exist_ok=True)
    config = read_config(raw, FAMILIES)
    dtype = {v: k for k, v in TORCH_DTYPES.items()}[getattr(torch, config.dtype)]
    specs = {spec.name: spec for spec in expected_tensors(config)}
    named = {config.stored_name(name): name for name in specs}

    def make(name: str) -> torch.Tensor:
        spec = specs[name]
        # The router's selection bias stays float32 in every published checkpoint.
        own = torch.float32 if spec.role == "router_bias" else TORCH_DTYPES[dtype]
        scale = embedding_scale if spec.role == "embed" else 1.0
        if spec.role == "embed" and config.family.embedding_scale:  # the model does it itself
            scale /= config.hidden_size**0.5
        made = random_tensor(name, spec.shape, spec.role, own) * scale
        return made - 1 if spec.role in config.family.zero_centred_roles else made

    def stored(name: str) -> torch.Tensor:
        if name in named:
            return make(named[name])
        layer = int(name.removeprefix(config.stored_prefix).split(".")[1])
        names = [config.expert_tensors(layer, e) for e in range(config.num_experts)]
        matrices = len(config.family.matrices)
        first = matrices if name.endswith("_bias") else 0
        places = slice(first, first + matrices - 1)
        if name.removesuffix("_bias").endswith(config.family.stacked_names[1]):
            places = slice(places.stop, places.stop + 1)
        whole = torch.stack([join([make(part) for part in n[places]]) for n in names])
        return whole.mT.contiguous() if transposed and whole.dim() == 3 else whole

    def join(parts: list[torch.Tensor]) -> torch.Tensor:
        turns = config.family.gate_up_interleaved and len(parts) > 1
        return torch.stack(parts, dim=1).flatten(0, 1) if turns else torch.cat(parts)

    entries: list[TensorEntry] = []
    for spec in specs.values():
        if not fused or spec.expert is None:
            own = "F32" if spec.role == "router_bias" else dtype
            entries.append(TensorEntry(config.stored_name(spec.name), own, spec.shape))
    if fused:
        for layer in config.moe_layers:
            block = config.family.experts_in_memory.removesuffix("experts")
            prefix = config.stored_name(f"{config.layer_prefix(layer)}{block}")
            first, second = config.family.stacked_names
            experts, width, hidden = (
                config.num_experts,
                config.moe_intermediate_size,
                config.hidden_size,
            )
            for name, rows, columns in (
                (first, (len(config.family.matrices) - 1) * width, hidden),
                (second, hidden, width),
            ):
                shape = (columns, rows) if transposed else (rows, columns)
                entries.append(TensorEntry(prefix + name, dtype, (experts, *shape)))
                if config.family.expert_bias:
                    entries.append(TensorEntry(f"{prefix}{name}_bias", dtype, (experts, rows)))
    for entry in write_shards(directory, plan_shards(entries, shard_bytes), stored):
        assert dtype_name(TORCH_DTYPES[entry.dtype]) == entry.dtype
    (directory / "config.json").write_text(json.dumps(dict(raw), indent=1))
    return directory


def write_holes(directory: Path, raw: Mapping[str, Any]) -> Path:
    """The headers of ``raw``'s checkpoint in shards, the weights behind them holes in the files."""
    config = read_config(dict(raw), FAMILIES)
    entries = [
        TensorEntry(config.stored_name(spec.name), "BF16", spec.shape)
        for spec in expected_tensors(config)
    ]
    shards = plan_shards(entries)
    for shard in shards:
        with (directory / shard.name).open("wb") as stream:
            stream.write(shard.header)
            stream.truncate(shard.nbytes)
    weight_map = {entry.name: shard.name for shard in shards for entry in shard.entries}
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(dict(raw)))
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    args = parser.parse_args()
    raw = dict(SHAPES[args.shape])
    if args.layers:
        raw["num_hidden_layers"] = args.layers
    write_random_checkpoint(args.directory, raw)


if __name__ == "__main__":
    main()

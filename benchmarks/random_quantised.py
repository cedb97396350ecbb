"""Write a random checkpoint of a published model's shape as it is published: in FP8 or MXFP4.

    python benchmarks/random_quantised.py qwen3-30b-a3b-fp8 DIR --layers 4

One tensor is in memory at a time. The numbers keep activations near 1; scales differ by block.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import floor, log2
from pathlib import Path
from typing import Any

import published_configs
import torch
from random_checkpoint import SHAPES, random_tensor

from tenp_edge.checkpoint.files import TensorEntry, plan_shards, write_shards
from tenp_edge.models import FAMILIES, ModelConfig, TensorSpec, expected_tensors, read_config

_BLOCK = 128
_MX_GROUP = 32
_MX_RMS = 2.9  # of FP4 codes drawn evenly
_FP8_SPAN = 64.0  # the largest noise, about five standard deviations, stays below 448
# What stays in bf16: DeepSeek's and Qwen's modules_to_not_convert.
_KEPT = frozenset("embed output router shared_router delta_a delta_b delta_ba delta_conv".split())
_FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [_BLOCK, _BLOCK],
}


@dataclass(frozen=True)
class Part:
    """A tensor of the file and what makes it."""

    entry: TensorEntry
    make: Callable[[], torch.Tensor]


Scheme = Callable[[ModelConfig], Iterator[Part]]


@dataclass(frozen=True)
class Published:
    """``config``: config.json, quantization_config included; ``parts``: the tensors."""

    config: Mapping[str, Any]
    parts: Scheme


def write_quantised(directory: Path, published: Published, layers: int | None = None) -> Path:
    """The checkpoint in ``directory``; ``layers``: the first of them only."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = with_layers(published.config, layers)
    parts = {part.entry.name: part for part in published.parts(read_config(raw, FAMILIES))}
    shards = plan_shards([part.entry for part in parts.values()])
    for _ in write_shards(directory, shards, lambda name: parts[name].make()):
        pass
    (directory / "config.json").write_text(json.dumps(raw, indent=1))
    return directory


def quantised_bytes(published: Published, layers: int | None = None) -> int:
    """Bytes that `write_quantised` will write."""
    raw = with_layers(published.config, layers)
    return sum(part.entry.nbytes for part in published.parts(read_config(raw, FAMILIES)))


def with_layers(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """``config`` with the first ``layers`` only."""
    if layers is None:
        return dict(config)
    if "text_config" in config:
        return {**config, "text_config": with_layers(config["text_config"], layers)}
    return {**config, "num_hidden_layers": layers}


def _bf16(spec: TensorSpec) -> Part:
    entry = TensorEntry(spec.name, "BF16", spec.shape)
    return Part(entry, lambda: random_tensor(spec.name, spec.shape, spec.role, torch.bfloat16))


def _random(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def fp8_parts(config: ModelConfig) -> Iterator[Part]:
    """DeepSeek's and Qwen's FP8: every matrix but embeddings, router and head in 128 x 128."""
    for spec in expected_tensors(config):
        stored = replace(spec, name=config.stored_name(spec.name))
        if len(spec.shape) < 2 or spec.role in _KEPT:
            yield _bf16(stored)
            continue
        yield from _fp8(stored)


def _fp8(spec: TensorSpec) -> Iterator[Part]:
    (rows, columns), scale_name = spec.shape, f"{spec.name}_scale_inv"
    grid = (-(-rows // _BLOCK), -(-columns // _BLOCK))
    unit = columns**-0.5 / _FP8_SPAN

    def codes() -> torch.Tensor:
        noise = random_tensor(spec.name, spec.shape, spec.role, torch.bfloat16)
        return (noise / unit).to(torch.float8_e4m3fn)

    def scale() -> torch.Tensor:
        return unit * (0.8 + 0.4 * torch.rand(grid, generator=_random(scale_name)))

    yield Part(TensorEntry(spec.name, "F8_E4M3", spec.shape), codes)
    yield Part(TensorEntry(scale_name, "F32", grid), scale)


def mxfp4_parts(config: ModelConfig) -> Iterator[Part]:
    """gpt-oss: the stacked experts in MXFP4, everything else in bf16."""
    for spec in expected_tensors(config, without_experts=config.expert_widths):
        yield _bf16(spec)
    count, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
    for layer in config.moe_layers:
        prefix = f"{config.layer_prefix(layer)}mlp.experts."
        yield from _mxfp4(f"{prefix}gate_up_proj", (count, 2 * width, hidden))
        yield from _mxfp4(f"{prefix}down_proj", (count, hidden, width))


def _mxfp4(name: str, shape: tuple[int, int, int]) -> Iterator[Part]:
    count, rows, columns = shape
    groups = (count, rows, columns // _MX_GROUP)
    exponent = 127 + floor(log2(columns**-0.5 / _MX_RMS))

    def codes() -> torch.Tensor:
        size = (*groups, _MX_GROUP // 2)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=_random(name))

    def scale() -> torch.Tensor:
        lower, upper = exponent - 1, exponent + 2
        return torch.randint(lower, upper, groups, generator=_random(name)).to(torch.uint8)

    yield Part(TensorEntry(f"{name}_blocks", "U8", (*groups, _MX_GROUP // 2)), codes)
    yield Part(TensorEntry(f"{name}_scales", "U8", groups), scale)
    bias = TensorSpec(f"{name}_bias", (count, rows), "bias", "routed experts")
    yield _bf16(bias)


PUBLISHED: dict[str, Published] = {
    "qwen3-30b-a3b-fp8": Published(
        SHAPES["qwen3-30b-a3b"]
        | {
            "quantization_config": _FP8,
        },
        fp8_parts,
    ),
    "qwen3.6-35b-a3b-fp8": Published(
        published_configs.PUBLISHED["Qwen/Qwen3.6-35B-A3B"][1] | {"quantization_config": _FP8},
        fp8_parts,
    ),
    "gpt-oss-20b": Published(
        published_configs.PUBLISHED["openai/gpt-oss-20b"][1]
        | {
            "layer_types": None,  # as many as the layers that are written
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
            },
        },
        mxfp4_parts,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=sorted(PUBLISHED))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    args = parser.parse_args()
    write_quantised(args.directory, PUBLISHED[args.shape], args.layers)


if __name__ == "__main__":
    main()

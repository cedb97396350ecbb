"""Tiny checkpoints rewritten into the quantised layouts that people publish, and the references.

Each `Quantised` writes a matrix as its publisher's tool does and decodes it as the reference does:
transformers for FP8 and gpt-oss, compressed-tensors itself for its formats, a formula written down
here where no library is at hand (ModelOpt, GPTQ, AWQ).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from support.edits import edit
from support.quantised_codes import (
    E4M3,
    Tensors,
    decode_awq,
    decode_blocks,
    decode_gptq,
    decode_mxfp4,
    decode_nvfp4,
    decode_per_tensor,
    decode_transformers,
    encode_awq,
    encode_fp8,
    encode_gptq,
    encode_mxfp4,
    encode_nvfp4,
    encode_per_tensor,
    largest_of_blocks,
)
from support.stored_layouts import stack_experts


@dataclass(frozen=True)
class Quantised:
    """``encode``: a bf16 matrix -> its tensors by what follows the module's name.
    ``decode``: these -> the reference's numbers. ``stacked``: of stacked experts instead."""

    config: Mapping[str, Any]
    encode: Callable[[torch.Tensor], Tensors]
    decode: Callable[[Tensors], torch.Tensor]
    title: str
    stacked: bool = False
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)


def quantise(model: Path, layout: Quantised) -> Tensors:
    """Rewrite the matrices of ``model`` (experts and attention; the embedding, the router and the
    norms stay); returns the reference's numbers of each, by name."""
    file, expected = model / "model.safetensors", {}
    tensors: Tensors = {}
    for name, tensor in load_file(file).items():
        if not _is_quantised(name, layout):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        parts = layout.encode(tensor.bfloat16())
        expected[name] = layout.decode(parts)
        for suffix, part in {**parts, **layout.beside}.items():
            tensors[module + suffix] = part.clone().contiguous()
    save_file(tensors, file)
    edit(model / "config.json", lambda raw: raw.update(quantization_config=dict(layout.config)))
    return expected


def stored_in(name: str, original: Path, model: Path) -> Tensors:
    """``original`` in the layout ``name`` at ``model``; the reference's numbers by name."""
    shutil.copytree(original, model)
    if LAYOUTS[name].stacked:
        stack_experts(model)
    return quantise(model, LAYOUTS[name])


def _is_quantised(name: str, layout: Quantised) -> bool:
    if layout.stacked:
        return name.endswith(("gate_up_proj", "down_proj"))
    return name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight"))


def _fp8(block: tuple[int, int], **config: Any) -> dict[str, Any]:
    stated = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return stated | {"weight_block_size": list(block)} | config


def _compressed(name: str, title: str, **weights: Any) -> Quantised:
    """What the library writes for the scheme ``weights``, and what it reads back."""
    activations = {"num_bits": 8, "type": weights["type"], "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights}
    if name in ("float-quantized", "int-quantized"):
        group["input_activations"] = activations
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(name)

    def encode(matrix: torch.Tensor) -> Tensors:
        state = {"weight": matrix, **_parameters(matrix, weights)}
        return {f".{key}": part for key, part in compressor.compress(state, scheme).items()}

    def decode(parts: Tensors) -> torch.Tensor:
        state = {key.removeprefix("."): part for key, part in parts.items()}
        found = compressor.decompress(state, scheme)["weight"]
        assert isinstance(found, torch.Tensor)
        return found

    config = {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {"group_0": group},
    }
    return Quantised(config, encode, decode, title)


def _parameters(matrix: torch.Tensor, weights: Mapping[str, Any]) -> Tensors:
    """The scale (and the zero point) that an observer of the extremes would set."""
    size = {"channel": matrix.shape[1], "tensor": matrix.shape[1]}.get(weights["strategy"])
    if weights["strategy"] == "block":
        return {
            "weight_scale": (largest_of_blocks(matrix, tuple(weights["block_structure"])) / 448)
        }
    groups = matrix.float().unflatten(-1, (-1, size or weights["group_size"]))
    most = groups.abs().amax(-1)
    if weights["type"] == "float" and weights["num_bits"] == 4:
        whole = 6 * 448 / matrix.float().abs().max()
        if weights["group_size"] == 16:
            scale = (most / 6 * whole).to(E4M3)
            return {"weight_scale": scale.bfloat16(), "weight_global_scale": whole.reshape(1)}
        return {"weight_scale": (most / 6).log2().ceil().exp2().bfloat16()}
    if weights["type"] == "float":
        return {"weight_scale": (most / 448).bfloat16()}
    steps = 2 ** weights["num_bits"] - 1
    if weights["symmetric"]:
        return {"weight_scale": (2 * most / steps).bfloat16()}
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scale = ((high - low) / steps).bfloat16()
    zero = (-low / scale.float()).round() - (steps + 1) // 2
    return {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}


def _gptq(shift: int, shuffled: bool) -> Quantised:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": shuffled}
    return Quantised(
        config | ({} if shift else {"checkpoint_format": "gptq_v2"}),
        partial(encode_gptq, shift=shift, shuffled=shuffled),
        partial(decode_gptq, shift=shift),
        "GPTQ, 4 bits, groups of 32",
    )


_SCALE = torch.ones(())
_EVEN, _UNEVEN = (32, 32), (40, 48)
LAYOUTS: dict[str, Quantised] = {
    "fp8 blocks": Quantised(
        _fp8(_EVEN, modules_to_not_convert=["lm_head"]),
        partial(encode_fp8, block=_EVEN, kind=torch.float32, suffix=".weight_scale_inv"),
        decode_transformers,
        "FP8, scales of 32 x 32 blocks",
        beside={".activation_scale": _SCALE},
    ),
    "fp8 blocks of exponents": Quantised(
        _fp8(_EVEN, scale_fmt="ue8m0"),
        partial(encode_fp8, block=_EVEN, kind=torch.float8_e8m0fnu, suffix=".scale"),
        decode_transformers,
        "FP8, scales of 32 x 32 blocks",
    ),
    "fp8 uneven blocks": Quantised(
        _fp8(_UNEVEN),
        partial(encode_fp8, block=_UNEVEN, kind=torch.float32, suffix=".weight_scale_inv"),
        partial(decode_blocks, block=_UNEVEN),
        "FP8, scales of 40 x 48 blocks",
    ),
    "fp8 modelopt": Quantised(
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        encode_per_tensor,
        decode_per_tensor,
        "FP8, a scale per matrix",
        beside={".input_scale": _SCALE, ".k_scale": _SCALE, ".v_scale": _SCALE},
    ),
    "mxfp4 gpt-oss": Quantised(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        encode_mxfp4,
        decode_mxfp4,
        "MXFP4",
        stacked=True,
    ),
    "nvfp4 modelopt": Quantised(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        encode_nvfp4,
        decode_nvfp4,
        "NVFP4",
        beside={".input_scale": _SCALE},
    ),
    "fp8 channels": _compressed(
        "float-quantized", "FP8, a scale per row", type="float", num_bits=8, strategy="channel"
    ),
    "fp8 compressed blocks": _compressed(
        "float-quantized",
        "FP8, scales of 32 x 48 blocks",
        type="float",
        num_bits=8,
        strategy="block",
        block_structure=[32, 48],
    ),
    "int8 channels": _compressed(
        "int-quantized",
        "INT8, a scale per row",
        type="int",
        num_bits=8,
        strategy="channel",
        symmetric=True,
    ),
    "int4": _compressed(
        "pack-quantized",
        "INT4, groups of 32",
        type="int",
        num_bits=4,
        strategy="group",
        group_size=32,
        symmetric=True,
    ),
    "int4 with zero points": _compressed(
        "pack-quantized",
        "INT4, groups of 32",
        type="int",
        num_bits=4,
        strategy="group",
        group_size=32,
        symmetric=False,
    ),
    "int8 words": _compressed(
        "pack-quantized",
        "INT8, a scale per row",
        type="int",
        num_bits=8,
        strategy="channel",
        symmetric=True,
    ),
    "mxfp4": _compressed(
        "mxfp4-pack-quantized", "MXFP4", type="float", num_bits=4, strategy="group", group_size=32
    ),
    "nvfp4": _compressed(
        "nvfp4-pack-quantized",
        "NVFP4",
        type="float",
        num_bits=4,
        strategy="tensor_group",
        group_size=16,
    ),
    "gptq": _gptq(1, False),
    "gptq by activations": _gptq(1, True),
    "gptq version 2": _gptq(0, True),
    "awq": Quantised(
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        encode_awq,
        decode_awq,
        "AWQ, 4 bits, groups of 32",
    ),
}


def write_config(model: Path, config: Mapping[str, Any] | str) -> None:
    """Give ``model`` the quantization_config ``config``, its tensors left as they are."""
    raw = json.loads((model / "config.json").read_text()) | {"quantization_config": config}
    (model / "config.json").write_text(json.dumps(raw))

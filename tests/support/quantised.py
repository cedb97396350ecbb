"""Tiny checkpoints rewritten into the quantised layouts that people publish, and the references.

Each `Quantised` writes a matrix as its publisher's tool does and decodes it as the reference does:
transformers for FP8 and gpt-oss, compressed-tensors itself for its formats, a formula written down
here where no library is at hand (ModelOpt, GPTQ, AWQ).
"""

from __future__ import annotations

import json
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
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Tensors = dict[str, torch.Tensor]
_E4M3 = torch.float8_e4m3fn
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


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


def _is_quantised(name: str, layout: Quantised) -> bool:
    if layout.stacked:
        return name.endswith(("gate_up_proj", "down_proj"))
    return name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight"))


# -- FP8 -------------------------------------------------------------------------------------------


def _blocks(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The largest number of each block, [row blocks, column blocks]."""
    return torch.stack(
        [
            torch.stack([part.abs().max() for part in rows.split(block[1], dim=1)])
            for rows in matrix.float().split(block[0])
        ]
    )


def _at_blocks(grid: torch.Tensor, matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The number of the block of each place, found place by place."""
    rows, columns = (
        torch.arange(size) // own for size, own in zip(matrix.shape, block, strict=True)
    )
    return grid.float()[rows[:, None], columns[None, :]]


def _encode_fp8(
    matrix: torch.Tensor, block: tuple[int, int], kind: torch.dtype, suffix: str
) -> Tensors:
    scale = _blocks(matrix, block) / 448
    if kind == torch.float8_e8m0fnu:
        scale = scale.log2().ceil().exp2()
    scale = scale.to(kind)
    codes = (matrix.float() / _at_blocks(scale, matrix, block)).to(_E4M3)
    return {".weight": codes, suffix: scale}


def _decode_transformers(parts: Tensors) -> torch.Tensor:
    codes, scale = parts.values()
    return Fp8Dequantize(None)._dequantize_one(codes, scale, output_dtype=torch.bfloat16)


def _decode_blocks(parts: Tensors, block: tuple[int, int]) -> torch.Tensor:
    codes, scale = parts.values()
    return (codes.float() * _at_blocks(scale, codes, block)).bfloat16()


def _fp8(block: tuple[int, int], **config: Any) -> dict[str, Any]:
    stated = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return stated | {"weight_block_size": list(block)} | config


def _encode_per_tensor(matrix: torch.Tensor) -> Tensors:
    scale = matrix.float().abs().max() / 448
    return {".weight": (matrix.float() / scale).to(_E4M3), ".weight_scale": scale}


def _decode_per_tensor(parts: Tensors) -> torch.Tensor:
    return (parts[".weight"].float() * parts[".weight_scale"]).bfloat16()


# -- FP4 -------------------------------------------------------------------------------------------


def _nearest_codes(values: torch.Tensor) -> torch.Tensor:
    """FP4 codes, two a byte, the first in the low four bits."""
    codes = (values.abs()[..., None] - _E2M1).abs().argmin(-1) | (values < 0).int() * 8
    low, high = codes[..., ::2], codes[..., 1::2]
    return (low | high << 4).to(torch.uint8)


def _encode_mxfp4(matrices: torch.Tensor) -> Tensors:
    groups = matrices.float().unflatten(-1, (-1, 32))
    exponent = (groups.abs().amax(-1) / 6).log2().ceil().clamp(-127, 127)
    blocks = _nearest_codes(groups / exponent.exp2()[..., None])
    return {"_blocks": blocks, "_scales": (exponent + 127).to(torch.uint8)}


def _decode_mxfp4(parts: Tensors) -> torch.Tensor:
    """transformers gives (experts, columns, rows), as gpt-oss computes."""
    decoded = convert_moe_packed_tensors(parts["_blocks"], parts["_scales"])
    return decoded.mT


def _encode_nvfp4(matrix: torch.Tensor) -> Tensors:
    groups = matrix.float().unflatten(-1, (-1, 16))
    whole = matrix.float().abs().max() / (6 * 448)
    scale = (groups.abs().amax(-1) / 6 / whole).to(_E4M3)
    values = groups / (scale.float() * whole)[..., None].clamp_min(1e-12)
    codes = _nearest_codes(values).flatten(-2)
    return {".weight": codes, ".weight_scale": scale, ".weight_scale_2": whole}


def _decode_nvfp4(parts: Tensors) -> torch.Tensor:
    codes = parts[".weight"].int()
    table = torch.cat([_E2M1, -_E2M1])
    values = torch.empty(codes.shape[0], 2 * codes.shape[1])
    values[:, ::2], values[:, 1::2] = table[codes & 15], table[codes >> 4]
    scale = parts[".weight_scale"].float() * parts[".weight_scale_2"]
    return (values * scale.repeat_interleave(16, 1)).bfloat16()


# -- compressed-tensors ----------------------------------------------------------------------------


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
        return {"weight_scale": (_blocks(matrix, tuple(weights["block_structure"])) / 448)}
    groups = matrix.float().unflatten(-1, (-1, size or weights["group_size"]))
    most = groups.abs().amax(-1)
    if weights["type"] == "float" and weights["num_bits"] == 4:
        whole = 6 * 448 / matrix.float().abs().max()
        if weights["group_size"] == 16:
            scale = (most / 6 * whole).to(_E4M3)
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


# -- GPTQ and AWQ ----------------------------------------------------------------------------------


def _integers(matrix: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """4-bit codes [rows, columns], zero points and scales [rows, groups]; ``order``: the groups."""
    codes = torch.empty(matrix.shape, dtype=torch.int64)
    scales, zeros = [], []
    for group in range(int(order.max()) + 1):
        own = matrix.float()[:, order == group]
        low, high = own.amin(1).clamp_max(0), own.amax(1).clamp_min(0)
        scale = ((high - low) / 15).half()
        zero = (-low / scale.float()).round().clamp(1, 15)  # a zero point of 0 wraps in version 1
        codes[:, order == group] = (
            (own / scale.float()[:, None] + zero[:, None]).round().clamp(0, 15).long()
        )
        scales.append(scale)
        zeros.append(zero.long())
    return codes, torch.stack(zeros, 1), torch.stack(scales, 1)


def _words(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """[n, 8 m] -> int32 [n, m]: the code ``order[k]`` of each eight lies at bit 4 k."""
    eights = codes.unflatten(-1, (-1, 8))
    words = sum(eights[..., place] << 4 * k for k, place in enumerate(order))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _encode_gptq(matrix: torch.Tensor, shift: int, shuffled: bool) -> Tensors:
    columns = matrix.shape[1]
    order = torch.arange(columns) // 32
    if shuffled:
        order = order[torch.randperm(columns, generator=torch.Generator().manual_seed(3))]
    codes, zeros, scales = _integers(matrix, order)
    return {
        ".qweight": _words(codes).T,
        ".qzeros": _words(zeros.T - shift),
        ".scales": scales.T,
        ".g_idx": order.int(),
    }


def _decode_gptq(parts: Tensors, shift: int) -> torch.Tensor:
    """Input by input: w = scale * (code - (zero + shift)), as its authors define it."""
    qweight, qzeros, scales, order = parts.values()
    rows = range(scales.shape[1])
    zeros = torch.stack([qzeros[:, o // 8].long() >> 4 * (o % 8) & 15 for o in rows], dim=1)
    weight = torch.empty(len(rows), len(order))
    for i, group in enumerate(order.tolist()):
        code = qweight[i // 8].long() >> 4 * (i % 8) & 15
        weight[:, i] = scales[group].float() * (code - zeros[group] - shift).float()
    return weight


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map


def _encode_awq(matrix: torch.Tensor) -> Tensors:
    codes, zeros, scales = _integers(matrix, torch.arange(matrix.shape[1]) // 32)
    return {
        ".qweight": _words(codes.T, _AWQ_ORDER),
        ".qzeros": _words(zeros.T, _AWQ_ORDER),
        ".scales": scales.T,
    }


def _decode_awq(parts: Tensors) -> torch.Tensor:
    qweight, qzeros, scales = parts.values()
    places = {place: k for k, place in enumerate(_AWQ_ORDER)}
    rows = [
        (qweight[:, o // 8].long() >> 4 * places[o % 8] & 15)
        - (qzeros[:, o // 8].long() >> 4 * places[o % 8] & 15).repeat_interleave(32)
        for o in range(scales.shape[1])
    ]
    return torch.stack(rows).float() * scales.float().repeat_interleave(32, 0).T


def _gptq(shift: int, shuffled: bool) -> Quantised:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": shuffled}
    return Quantised(
        config | ({} if shift else {"checkpoint_format": "gptq_v2"}),
        partial(_encode_gptq, shift=shift, shuffled=shuffled),
        partial(_decode_gptq, shift=shift),
        "GPTQ, 4 bits, groups of 32",
    )


_SCALE = torch.ones(())
_EVEN, _UNEVEN = (32, 32), (40, 48)
LAYOUTS: dict[str, Quantised] = {
    "fp8 blocks": Quantised(
        _fp8(_EVEN, modules_to_not_convert=["lm_head"]),
        partial(_encode_fp8, block=_EVEN, kind=torch.float32, suffix=".weight_scale_inv"),
        _decode_transformers,
        "FP8, scales of 32 x 32 blocks",
        beside={".activation_scale": _SCALE},
    ),
    "fp8 blocks of exponents": Quantised(
        _fp8(_EVEN, scale_fmt="ue8m0"),
        partial(_encode_fp8, block=_EVEN, kind=torch.float8_e8m0fnu, suffix=".scale"),
        _decode_transformers,
        "FP8, scales of 32 x 32 blocks",
    ),
    "fp8 uneven blocks": Quantised(
        _fp8(_UNEVEN),
        partial(_encode_fp8, block=_UNEVEN, kind=torch.float32, suffix=".weight_scale_inv"),
        partial(_decode_blocks, block=_UNEVEN),
        "FP8, scales of 40 x 48 blocks",
    ),
    "fp8 modelopt": Quantised(
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        _encode_per_tensor,
        _decode_per_tensor,
        "FP8, a scale per matrix",
        beside={".input_scale": _SCALE, ".k_scale": _SCALE, ".v_scale": _SCALE},
    ),
    "mxfp4 gpt-oss": Quantised(
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        _encode_mxfp4,
        _decode_mxfp4,
        "MXFP4",
        stacked=True,
    ),
    "nvfp4 modelopt": Quantised(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        _encode_nvfp4,
        _decode_nvfp4,
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
        _encode_awq,
        _decode_awq,
        "AWQ, 4 bits, groups of 32",
    ),
}


def write_config(model: Path, config: Mapping[str, Any] | str) -> None:
    """Give ``model`` the quantization_config ``config``, its tensors left as they are."""
    raw = json.loads((model / "config.json").read_text()) | {"quantization_config": config}
    (model / "config.json").write_text(json.dumps(raw))

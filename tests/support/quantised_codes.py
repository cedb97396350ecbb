"""How each published layout codes a matrix, and how its reference decodes that."""

from __future__ import annotations

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Tensors = dict[str, torch.Tensor]
E4M3 = torch.float8_e4m3fn
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


# -- FP8 -------------------------------------------------------------------------------------------


def largest_of_blocks(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
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


def encode_fp8(
    matrix: torch.Tensor, block: tuple[int, int], kind: torch.dtype, suffix: str
) -> Tensors:
    scale = largest_of_blocks(matrix, block) / 448
    if kind == torch.float8_e8m0fnu:
        scale = scale.log2().ceil().exp2()
    scale = scale.to(kind)
    codes = (matrix.float() / _at_blocks(scale, matrix, block)).to(E4M3)
    return {".weight": codes, suffix: scale}


def decode_transformers(parts: Tensors) -> torch.Tensor:
    codes, scale = parts.values()
    return Fp8Dequantize(None)._dequantize_one(codes, scale, output_dtype=torch.bfloat16)


def decode_blocks(parts: Tensors, block: tuple[int, int]) -> torch.Tensor:
    codes, scale = parts.values()
    return (codes.float() * _at_blocks(scale, codes, block)).bfloat16()


def encode_per_tensor(matrix: torch.Tensor) -> Tensors:
    scale = matrix.float().abs().max() / 448
    return {".weight": (matrix.float() / scale).to(E4M3), ".weight_scale": scale}


def decode_per_tensor(parts: Tensors) -> torch.Tensor:
    return (parts[".weight"].float() * parts[".weight_scale"]).bfloat16()


# -- FP4 -------------------------------------------------------------------------------------------


def _nearest_codes(values: torch.Tensor) -> torch.Tensor:
    """FP4 codes, two a byte, the first in the low four bits."""
    codes = (values.abs()[..., None] - _E2M1).abs().argmin(-1) | (values < 0).int() * 8
    low, high = codes[..., ::2], codes[..., 1::2]
    return (low | high << 4).to(torch.uint8)


def encode_mxfp4(matrices: torch.Tensor) -> Tensors:
    groups = matrices.float().unflatten(-1, (-1, 32))
    exponent = (groups.abs().amax(-1) / 6).log2().ceil().clamp(-127, 127)
    blocks = _nearest_codes(groups / exponent.exp2()[..., None])
    return {"_blocks": blocks, "_scales": (exponent + 127).to(torch.uint8)}


def decode_mxfp4(parts: Tensors) -> torch.Tensor:
    """transformers gives (experts, columns, rows), as gpt-oss computes."""
    decoded = convert_moe_packed_tensors(parts["_blocks"], parts["_scales"])
    return decoded.mT


def encode_nvfp4(matrix: torch.Tensor) -> Tensors:
    groups = matrix.float().unflatten(-1, (-1, 16))
    whole = matrix.float().abs().max() / (6 * 448)
    scale = (groups.abs().amax(-1) / 6 / whole).to(E4M3)
    values = groups / (scale.float() * whole)[..., None].clamp_min(1e-12)
    codes = _nearest_codes(values).flatten(-2)
    return {".weight": codes, ".weight_scale": scale, ".weight_scale_2": whole}


def decode_nvfp4(parts: Tensors) -> torch.Tensor:
    codes = parts[".weight"].int()
    table = torch.cat([_E2M1, -_E2M1])
    values = torch.empty(codes.shape[0], 2 * codes.shape[1])
    values[:, ::2], values[:, 1::2] = table[codes & 15], table[codes >> 4]
    scale = parts[".weight_scale"].float() * parts[".weight_scale_2"]
    return (values * scale.repeat_interleave(16, 1)).bfloat16()


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


def encode_gptq(matrix: torch.Tensor, shift: int, shuffled: bool) -> Tensors:
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


def decode_gptq(parts: Tensors, shift: int) -> torch.Tensor:
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


def encode_awq(matrix: torch.Tensor) -> Tensors:
    codes, zeros, scales = _integers(matrix, torch.arange(matrix.shape[1]) // 32)
    return {
        ".qweight": _words(codes.T, _AWQ_ORDER),
        ".qzeros": _words(zeros.T, _AWQ_ORDER),
        ".scales": scales.T,
    }


def decode_awq(parts: Tensors) -> torch.Tensor:
    qweight, qzeros, scales = parts.values()
    places = {place: k for k, place in enumerate(_AWQ_ORDER)}
    rows = [
        (qweight[:, o // 8].long() >> 4 * places[o % 8] & 15)
        - (qzeros[:, o // 8].long() >> 4 * places[o % 8] & 15).repeat_interleave(32)
        for o in range(scales.shape[1])
    ]
    return torch.stack(rows).float() * scales.float().repeat_interleave(32, 0).T

"""What the decoders share: exponents in a byte, FP4 codes, codes in words, one rounding."""

from __future__ import annotations

import torch

from tenp_edge.errors import UserError

_WORD_BITS = 32
_E8M0_BIAS = 127
# FP4, E2M1: the codes 0 to 7, then the same below zero (OCP Microscaling Formats 1.0, 5.3.3).
_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_E2M1_VALUES = torch.cat([_E2M1, -_E2M1])


def scale_values(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` in float32; bytes are exponents (E8M0), 255 is not a number."""
    if scale.dtype != torch.uint8:
        return scale.float()
    return scale.view(torch.float8_e8m0fnu).float()


def e2m1_values(codes: torch.Tensor) -> torch.Tensor:
    """Bytes [..., n] -> float32 [..., 2 n]: the low four bits come first."""
    codes = codes.view(torch.uint8)
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1)
    return _E2M1_VALUES[pairs.flatten(-2).int()]


def words_to_codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., n] -> int32 [..., n * 32 / bits]: unsigned codes, the lowest bits first."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts & (1 << bits) - 1).flatten(-2)


def group_of(
    columns: int, group: int | None, groups: int, order: torch.Tensor | None
) -> torch.Tensor:
    """[columns]: which of the ``groups`` each is in; ``order`` says it where it is there.

    Raises UserError where it names one that is not there.
    """
    if order is None or bool((order == -1).all()):  # as compressed-tensors marks that there is none
        return torch.arange(columns) // (group or columns)
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise UserError(
            f"a quantised weight's g_idx goes from {int(order.min())} to {int(order.max())}, "
            f"the weight has {groups} groups",
            "download the checkpoint again",
        )
    return order.long()


def rounded(values: torch.Tensor, to: str | None, scale: torch.Tensor) -> torch.Tensor:
    """float32 ``values`` as the reference returns them: in the dtype ``to``, or "scale" 's."""
    if to is None:
        return values
    return values.to(scale.dtype if to == "scale" else getattr(torch, to))

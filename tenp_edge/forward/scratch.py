"""Memory that is used again: fresh pages cost more than the arithmetic done in them, and blocks
that come and go between small ones that stay leave the heap full of holes."""

from __future__ import annotations

import torch


class Scratch:
    """Buffers by name, kept between calls."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def like(
        self, name: str, rows: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """An uninitialised tensor of ``dtype`` in the shape of ``rows``; the same memory every
        time."""
        buffer = self._buffers.get(name)
        fits = buffer is not None and buffer.numel() >= rows.numel()
        if buffer is None or not fits or (buffer.device, buffer.dtype) != (rows.device, dtype):
            buffer = torch.empty(rows.numel(), dtype=dtype, device=rows.device)
            self._buffers[name] = buffer
        return buffer[: rows.numel()].view(rows.shape)

    def copy(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` in float32, of the same shape, free to be overwritten."""
        return self.like(name, rows).copy_(rows)

    def float(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` in float32, of the same shape, not to be overwritten."""
        return self.cast(name, rows, torch.float32)

    def cast(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``rows`` in ``dtype``, of the same shape, not to be overwritten."""
        return rows if rows.dtype == dtype else self.like(name, rows, dtype).copy_(rows)

"""Running static graphs: fixed batch, length and past."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from support import tiny

BATCH, LENGTH, PAST = 4, 8, 24
PADS = (0, 3, 5, 1)


def left_padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions of four sequences of 20, padded on the left."""
    ids = torch.randint(0, tiny.VOCAB, (BATCH, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, pad in enumerate(PADS):
        mask[row, :pad] = 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def in_chunks(directory: Path) -> np.ndarray:
    """Logits of `_left_padded`: two chunks through prefill.onnx, four tokens through decode.onnx.

    The host keeps the cache: it stores what comes out as present in the next free places.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        length: onnxruntime.InferenceSession(str(directory / name), options)
        for length, name in ((LENGTH, "prefill.onnx"), (1, "decode.onnx"))
    }
    cache = {
        value.name: np.zeros(value.shape, np.float32)
        for value in sessions[1].get_inputs()
        if value.name.startswith("past")
    }
    ids, real, positions = (tensor.numpy() for tensor in left_padded())
    logits, start = [], 0
    for length in (LENGTH, LENGTH, 1, 1, 1, 1):
        mask = np.zeros((BATCH, PAST + length), np.int64)
        mask[:, :start] = real[:, :start]
        mask[:, PAST:] = real[:, start : start + length]
        feeds = {
            "input_ids": ids[:, start : start + length],
            "attention_mask": mask,
            "position_ids": positions[:, start : start + length],
        }
        session = sessions[length]
        found, *present = session.run(None, feeds | cache)
        logits.append(found)
        for value, new in zip(session.get_outputs()[1:], present, strict=True):
            place = cache[value.name.replace("present.", "past_key_values.")]
            place[..., start : start + length, :] = new
        start += length
    return np.concatenate(logits, axis=1)

"""ggml's blocks in memory: as they are stored, where they decode to too much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.edits import refusal
from support.gguf_sources import write_gguf

from tenp_edge.checkpoint.blocks import held_rows
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.sweep import streaming_logits


def test_experts_of_a_large_layer_are_kept_as_they_are_stored(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward is the same, bit for bit, and reads the file once."""
    file = write_gguf(checkpoint_of("gpt_oss"), tmp_path / "model.gguf")
    source, tokens = ModelSource(Checkpoint(file)), torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    assert source.stored_dtype == torch.float32
    cpu = torch.device("cpu")
    (kept,) = streaming_logits(source, tokens, device=cpu, dtype=torch.float32)
    monkeypatch.setattr("tenp_edge.checkpoint.source.HELD_DECODED_BYTES", 0)
    large = ModelSource(Checkpoint(file))
    assert large.stored_dtype is None
    (decoded,) = streaming_logits(large, tokens, device=cpu, dtype=torch.float32)
    assert torch.equal(kept, decoded)
    held, down = large.held_experts(1), large.expert(1, 3).down
    file.unlink()
    assert torch.equal(held(3).down, down)


def test_rows_of_a_matrix_that_is_kept(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(write_gguf(checkpoint_of("mixtral"), tmp_path / "model.gguf"))
    rows = held_rows(checkpoint, "lm_head.weight")
    assert rows is not None
    assert torch.equal(rows(7, 20), checkpoint.read("lm_head.weight")[7:20])
    # Put together from rows that lie apart, and not stored in blocks.
    assert held_rows(checkpoint, "model.layers.0.self_attn.q_proj.weight") is None
    assert held_rows(checkpoint, "model.norm.weight") is None


def test_a_block_that_is_no_number_is_refused(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where a matrix is kept as blocks, too."""
    file = write_gguf(checkpoint_of("mixtral"), tmp_path / "model.gguf")
    checkpoint, name = Checkpoint(file), "lm_head.weight"
    (part,) = checkpoint.weights[name].tensors.values()
    stored = checkpoint.tensors[part]
    row = stored.nbytes // stored.shape[0]
    with file.open("r+b") as stream:
        stream.seek(stored.offset + 3 * row)
        stream.write(b"\xff" * row)
    rows = ModelSource(checkpoint).held(name)
    assert rows(0, 3).isfinite().all()
    values = checkpoint.weights[name].shape[1]
    assert refusal(lambda: rows(2, 5)) == (
        f"{name} holds {values} values that are not finite (NaN or infinity)",
        "a sound copy of the checkpoint",
    )

"""ggml's blocks: every type that ggml can decode is read, as ggml decodes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.gguf_sources import write_gguf

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.stored.ggml import decode_ggml, decodes, to_float
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.runtime.gguf.header import GGML_TYPES

_TYPE_COUNT = 43  # GGML_TYPE_COUNT of the installed ggml
ROWS, COLUMNS = 3, 512


def test_every_type_that_ggml_decodes_is_known() -> None:
    assert {number for number in range(_TYPE_COUNT) if decodes(number)} == set(GGML_TYPES)


@pytest.mark.parametrize("name", list(TYPES))
def test_what_we_write_is_read_again(name: str) -> None:
    """Within what the type can hold; and as gguf-py's own decoder reads it."""
    kind = TYPES[name]
    rows = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5))
    data = np.frombuffer(kind.encode(rows), np.uint8).reshape(ROWS, -1)
    found = to_float(kind.ggml_id, torch.from_numpy(data.copy())).reshape(ROWS, COLUMNS)
    error = (found - rows).square().mean().sqrt()
    coarse = 0.8 if name.startswith("TQ") else 0.65  # three values; two bits
    assert error < (0.02 if kind.block == 1 else coarse)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.ggml_id))
    np.testing.assert_allclose(found.numpy(), expected.reshape(ROWS, COLUMNS), rtol=2e-6, atol=1e-6)


def test_padding_is_cut_off_and_parts_are_put_together() -> None:
    q8 = TYPES["Q8_0"]
    rows = torch.arange(4 * 64, dtype=torch.float32).reshape(4, 64)
    blocks = torch.frombuffer(bytearray(q8.encode(rows)), dtype=torch.uint8).reshape(4, -1)
    plain = {"types": {"codes": 8}, "shapes": {}, "restore": None}
    assert decode_ggml({"codes": blocks}, (4, 40), plain).shape == (4, 40)
    both = {
        "types": {"a": 8, "b": 0},
        "shapes": {"a": (2, 2, 64)},
        "restore": lambda a, b: torch.cat([a.flatten(0, 1), b]),
    }
    found = decode_ggml({"a": blocks, "b": rows}, (8, 64), both)
    assert torch.equal(found[4:], rows) and found.shape == (8, 64)


# -- what is kept in memory ------------------------------------------------------------------------


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
    rows = checkpoint.held_blocks("lm_head.weight")
    assert rows is not None
    assert torch.equal(rows(7, 20), checkpoint.read("lm_head.weight")[7:20])
    # Put together from rows that lie apart, and not stored in blocks.
    assert checkpoint.held_blocks("model.layers.0.self_attn.q_proj.weight") is None
    assert checkpoint.held_blocks("model.norm.weight") is None

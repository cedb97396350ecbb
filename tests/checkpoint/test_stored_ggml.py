"""ggml's blocks: every type that ggml can decode is read, as ggml decodes it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from tenp_edge.checkpoint.stored.ggml import decode_ggml, decodes, to_float
from tenp_edge.exporters.gguf.types import TYPES
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

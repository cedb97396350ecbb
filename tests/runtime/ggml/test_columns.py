"""Several columns at once: the C extension's kernels give what ggml's dot products give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.runtime_cases import build_extension

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.columns import COLUMN_TYPES, products, several_columns
from tenp_edge.runtime.ggml.library import open_library

_CPU = Path("/proc/cpuinfo")


def able(feature: str) -> bool:
    return _CPU.is_file() and f" {feature} " in _CPU.read_text()


@pytest.mark.parametrize("kind", COLUMN_TYPES, ids=lambda kind: COLUMN_TYPES[kind][0])
def test_kernels_are_there_where_the_processor_has_their_instructions(
    kind: int, tmp_path: Path
) -> None:
    library, built = open_library(), build_extension(tmp_path)
    for level in (1, 2):
        assert bool(several_columns(library, kind, level)) == (built and able("avx2"))
    assert several_columns(library, kind, 0) == several_columns(library, ggml.F32) == 0


@pytest.mark.parametrize("kind", COLUMN_TYPES, ids=lambda kind: COLUMN_TYPES[kind][0])
@pytest.mark.parametrize("level", [1, 2])
def test_kernels_give_what_ggml_gives(level: int, kind: int, tmp_path: Path) -> None:
    """Of AVX2, too, where the processor has more: one to nine columns, rows of few blocks and of
    more than a kernel takes eight columns of."""
    build_extension(tmp_path)
    library = open_library()
    address = several_columns(library, kind, level)
    if not address:
        return  # not on this processor, as the test above knows
    block = COLUMN_TYPES[kind][1]
    for length in (block, 3 * block, 12 * block, 9216):
        for count in range(1, 10) if length < 9216 else (3, 8):
            wanted, found = products(library, kind, address, length, count)
            assert np.array_equal(found, wanted), (length, count)

"""GGUF files of every family, as others publish them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.gguf_sources import write_gguf


@pytest.fixture(scope="session")
def gguf_of(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The merged file of a family's tiny checkpoint, written once a session; do not change it."""

    @cache
    def make(family: str, quant: str = "Q8_0") -> Path:
        file = tmp_path_factory.mktemp(family) / f"{family}-{quant}.gguf"
        return write_gguf(checkpoint_of(family), file, quant)

    return make

"""Per-expert files of tiny models, with and without the C extension."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.runtime_cases import CheckpointOf, build_extension, export_ragged

FileOf = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def extension(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """The C extension, compiled if need be: what is tested below is tested with it."""
    return build_extension(tmp_path_factory.mktemp("extension"))


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> FileOf:
    """The ragged file of a family in a type and layout, written once; ``plan_of`` its plan."""

    @cache
    def make(family: str, quant: str = "F32", layout: str = "per-expert") -> Path:
        file = tmp_path_factory.mktemp("gguf") / f"{family}-{quant}-{layout}.gguf"
        export_ragged(checkpoint_of(family), file, quant, layout)
        return file

    return make

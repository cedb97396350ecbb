"""Fixtures every test file shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch

# Tiny tensors on one thread: threads that wait for each other made the tests five times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny float32 checkpoint of a family, written once a session; do not change it."""

    @cache
    def make(family: str) -> Path:
        return tiny.make(tmp_path_factory.mktemp(family), family)

    return make

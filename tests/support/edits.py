"""Checkpoints with one thing wrong, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenp_edge.errors import UserError

CheckpointOf = Callable[[str], Path]


def refusal(action: Callable[[], object]) -> tuple[str, str | None]:
    """Message and hint of the UserError that ``action`` raises."""
    with pytest.raises(UserError) as caught:
        action()
    return caught.value.message, caught.value.hint


@pytest.fixture
def model(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """A copy of the tiny qwen3_moe that a test may damage."""
    return Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def edit_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")

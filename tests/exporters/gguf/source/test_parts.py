"""A split GGUF: all its parts are one model, and what is wrong with them is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.gguf_sources import part_name, rewritten, split

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.gguf.source.parts import open_parts
from tenp_edge.runtime.gguf.header import read_header

Make = Callable[..., Path]
COUNT = 3


@pytest.fixture
def parts(gguf_of: Make, tmp_path: Path) -> Path:
    """The first of three."""
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "model.gguf"))
    first = split(file, COUNT)
    file.unlink()
    return first


def test_all_parts_are_one_model(parts: Path, gguf_of: Make) -> None:
    whole, found = Checkpoint(gguf_of("qwen3_moe")), Checkpoint(parts)
    assert found.config.raw == whole.config.raw
    assert {tensor.file for tensor in found.tensors.values()} == set(parts.parent.glob("*.gguf"))
    for name in whole.weights:
        assert torch.equal(found.read(name), whole.read(name)), name


def test_a_missing_part(parts: Path, refuse: Callable[..., str]) -> None:
    part_name(parts.with_name("model.gguf"), 2, COUNT).unlink()
    assert refuse("inspect", parts) == (
        "error: 1 of the 3 parts of model-00001-of-00003.gguf are missing, the first is "
        "model-00002-of-00003.gguf\n"
        "try:   download the missing files into the same directory"
    )


def test_a_part_that_is_not_the_first(parts: Path, refuse: Callable[..., str]) -> None:
    second = part_name(parts.with_name("model.gguf"), 2, COUNT)
    assert refuse("inspect", second) == (
        "error: model-00002-of-00003.gguf is part 2 of 3 of a split GGUF\n"
        "try:   the first, model-00001-of-00003.gguf"
    )


def test_parts_of_two_models(parts: Path, refuse: Callable[..., str]) -> None:
    shutil.copy(parts, part_name(parts.with_name("model.gguf"), 2, COUNT))
    first = min(read_header(parts).tensors)
    assert refuse("inspect", parts).endswith(
        " lies in two parts of model-00001-of-00003.gguf\n"
        "try:   download all parts again, from one revision"
    )
    assert first.startswith("blk.")


def test_a_part_that_lacks_tensors(parts: Path, refuse: Callable[..., str]) -> None:
    last = part_name(parts.with_name("model.gguf"), 3, COUNT)
    rewritten(last, part=slice(1, None))
    assert refuse("inspect", parts) == (
        "error: model-00001-of-00003.gguf is of 38 tensors, 37 are there\n"
        "try:   download all parts again, from one revision"
    )


def test_a_file_whose_name_hides_that_it_is_a_part(
    parts: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    shutil.copy(parts, tmp_path / "renamed.gguf")
    assert refuse("inspect", tmp_path / "renamed.gguf") == (
        "error: renamed.gguf is of 3 parts, 1 are there\n"
        "try:   download all parts again, from one revision"
    )


def test_a_changed_file_is_read_again(gguf_of: Make, tmp_path: Path) -> None:
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "model.gguf"))
    assert open_parts(file) is open_parts(file)
    rewritten(file, add={"general.name": "another"})
    assert open_parts(file).header.fields["general.name"] == "another"

"""What the operating system refuses, in plain words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.edits import refusal
from support.limits import largest_file
from support.noting import names

from tenp_edge.cli.os_errors import as_user_error
from tenp_edge.disk import copy_file

QUICK = ("--samples", "2", "--seq-len", "64", "--no-validate")


def test_an_output_that_is_a_file(
    refuse: Callable[..., str], small_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "code.txt"
    file.write_text("precious")
    for verb in (("compress", small_model, "--keep", "0.5", *QUICK), ("calibrate", small_model)):
        assert refuse(*verb, "-o", file) == (f"error: {file} is not a directory\ntry:   another -o")
    assert file.read_text() == "precious"


def test_an_output_that_is_a_dangling_link(
    refuse: Callable[..., str], small_model: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert refuse("calibrate", small_model, "-o", link) == (
        f"error: {link} is a link to nowhere, which does not exist\n"
        "try:   another -o, or create what it points to"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_output_where_nothing_can_be_created(
    refuse: Callable[..., str], small_model: Path
) -> None:
    assert refuse("plan", small_model, "--keep", "0.5", "-o", "/proc/plan.json") == (
        "error: /proc/plan.json cannot be created: /proc takes no new files\n"
        "try:   another -o, in a directory that you may write to"
    )


def test_a_mistyped_directory_is_not_created(
    refuse: Callable[..., str], small_model: Path, tmp_path: Path
) -> None:
    for verb in (("plan", small_model, "--keep", "0.5"), ("validate", small_model, small_model)):
        assert refuse(*verb, "-o", tmp_path / "new" / "file.json") == (
            f"error: the directory {tmp_path / 'new'} does not exist\n"
            f"try:   mkdir -p {tmp_path / 'new'}, or another -o"
        )
    assert not list(tmp_path.iterdir())


PLACE = "another -o, in a directory that you may write to"


@pytest.mark.parametrize(
    ("code", "name", "message", "hint"),
    [
        (30, "{d}/out/x.partial", "{d}/out/x lies on a disk that can only be read", PLACE),
        (13, "{d}/out/x.partial", "{d}/out/x cannot be written: no permission in {d}", PLACE),
        (
            13,
            "{d}/.m.gguf.tenp-edge.lock",
            "{d}/m.gguf cannot be written: no permission in {d}",
            PLACE,
        ),
        (5, "{d}/x", "the disk failed to read or write {d}/x", "a copy on another disk"),
        (24, None, "too many files are open", "ulimit -n 4096, then the same command"),
        (36, "{d}/x", "{d}/x: File name too long", "another path"),
        (
            28,
            None,
            "the disk is full",
            "free some space; the same command continues",
        ),
    ],
)
def test_sentences(code: int, name: str | None, message: str, hint: str, tmp_path: Path) -> None:
    path = None if name is None else name.format(d=tmp_path)
    found = as_user_error(OSError(code, os.strerror(code), path))
    assert found is not None
    assert (found.message, found.hint) == (message.format(d=tmp_path), hint)


def test_an_error_of_a_library_is_not_the_systems() -> None:
    assert as_user_error(OSError("no such tokenizer")) is None


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2**20))
    with largest_file(1000):
        message, _ = refusal(lambda: copy_file(source, tmp_path / "target"))
    assert message.startswith("target needs 1.00 MiB, the limit for one file is 1000 B")
    assert names(tmp_path) == ["source"]
    copy_file(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(2**20)

"""The text in the package: how much there is of what, that it is varied, and that it is shipped."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from measure_text import kind_texts, measure

from tenp_edge.calibration.text.builtin_text import DIRECTORY, DOMAINS, Split, bundled_records
from tenp_edge.calibration.text.records import Chat

ROOT = Path(__file__).parents[3]
SPLITS: tuple[Split, Split] = ("calibration", "heldout")
LANGUAGES = frozenset("c cpp cs go hs java jl js kt lua mjs py R rb rs sh sql swift ts".split())


def text_files(root: Path) -> dict[str, bytes]:
    found = (root / "tenp_edge" / DIRECTORY).rglob("*")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    }


def documents(split: Split) -> list[str]:
    return [
        text
        for domain, kinds in bundled_records(split).items()
        for kind in kinds
        for text in kind_texts(domain, kind, [split])
    ]


def test_there_is_enough_of_everything() -> None:
    size = {split: sum(len(text.encode()) for text in documents(split)) for split in SPLITS}
    assert size["calibration"] >= 300_000
    assert 0.08 <= size["heldout"] / sum(size.values()) <= 0.2
    kinds = {split: bundled_records(split) for split in SPLITS}
    assert tuple(kinds["calibration"]) == tuple(kinds["heldout"]) == DOMAINS
    assert sum(len(of_domain) for of_domain in kinds["calibration"].values()) >= 12
    for domain in DOMAINS:
        assert set(kinds["heldout"][domain]) <= set(kinds["calibration"][domain])
        assert len(kinds["heldout"][domain]) >= 3
    programs = {Path(name).suffix[1:] for name in text_files(ROOT) if "/programs/" in name}
    assert len(programs & LANGUAGES) >= 8


def test_ten_languages_in_four_scripts() -> None:
    scripts = {}
    for kind in bundled_records("calibration")["languages"]:
        letters = [c for text in kind_texts("languages", kind) for c in text if c.isalpha()]
        (script, _), *_ = Counter(unicodedata.name(c).split()[0] for c in letters).most_common()
        scripts[kind] = script
    assert len(scripts) >= 10
    assert len(set(scripts.values())) >= 4


def test_conversations_take_turns() -> None:
    """Strict templates refuse anything else."""
    found = [
        placed
        for split in SPLITS
        for kinds in bundled_records(split).values()
        for kind in kinds.values()
        for placed in kind
        if isinstance(placed.record, Chat)
    ]
    assert len(found) >= 60
    for where, chat in found:
        assert isinstance(chat, Chat)
        roles = [message["role"] for message in chat.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns[0] == "user", where
        pairs = set(pairwise(turns))
        assert pairs <= {
            ("user", "assistant"),
            ("assistant", "user"),
            ("assistant", "tool"),
            ("tool", "tool"),
            ("tool", "assistant"),
        }, where


def test_no_document_is_in_both_splits() -> None:
    """Nor a line of some length: a document that was changed a little would share many."""
    lines = [
        {line.strip() for text in documents(split) for line in text.split("\n") if len(line) > 60}
        for split in SPLITS
    ]
    assert lines[1] and not lines[0] & lines[1]
    assert len(set(documents("calibration"))) == len(documents("calibration"))


@pytest.mark.parametrize("domain", DOMAINS)
def test_text_is_as_varied_as_natural_text(domain: str) -> None:
    """The bounds are what four bodies of natural English measure (docs/results.md): gzip ratios
    of 2.09 to 2.64, .976 to .997 of the 5-grams distinct in a window, .965 to .995 in all. Text in
    many languages compresses less, and nothing that is written less than 1.7."""
    kinds = bundled_records("calibration")[domain]
    found = measure([text for kind in kinds for text in kind_texts(domain, kind)])
    assert 1.7 <= found.gzip_ratio <= 2.64
    assert found.distinct >= 0.976 and found.distinct_in_all >= 0.965


def test_the_package_ships_it(tmp_path: Path) -> None:
    """What is installed is what lies here, and a wheel and a source distribution hold it."""
    here = text_files(ROOT)
    assert any(name.endswith(f"{DIRECTORY}/README.md") for name in here)
    assert text_files(Path(str(files("tenp_edge"))).parent) == here
    build, egg = tmp_path / "build", tmp_path / "egg"
    egg.mkdir()
    shared = ["egg_info", f"--egg-base={egg}"]
    commands = ["build_py", f"--build-lib={build}", "sdist", f"--dist-dir={tmp_path}"]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *shared, *commands], cwd=ROOT, check=True, timeout=300
    )
    assert text_files(build) == here
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert names >= set(here)

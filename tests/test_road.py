"""The newcomer's road, walked as docs/first-hour.md shows it, with fewer samples."""

from __future__ import annotations

import re

import make_road
import pytest
from make_road import FULL, PAGE, QUICK, Walked
from support.chatting import make_model

# The words that begin a line of facts: "memory    fits into ...".
_LABEL = re.compile(r"^ *([A-Za-z][\w' ]*?)(?:  |: |:$)", re.M)
# Lines that the model, its size and the text decide.
DEPENDS = {"note", "keeps", "LICENSE"}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> list[Walked]:
    model = make_model(tmp_path_factory.mktemp("model") / "tiny", "qwen3_moe")
    return make_road.walk(tmp_path_factory.mktemp("road"), QUICK, model, "1GiB")


def section(title: str) -> str:
    """What the page says under ``title``."""
    parts = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)
    return next(part for part in parts if part.startswith(f"{title}\n"))


def test_every_step_is_on_the_page(walked: list[Walked]) -> None:
    for one in walked:
        command = re.sub(r"--ram \S+", "--ram X", one.step.command.replace(QUICK, FULL))
        shown = re.sub(r"--ram \S+", "--ram X", section(one.step.title))
        assert command in shown, "run docs/make_road.py again"


def test_the_page_shows_what_is_printed(walked: list[Walked]) -> None:
    for one in walked:
        if one.step.title != "What can this machine run?":
            printed = set(_LABEL.findall(one.markdown()))
            shown = set(_LABEL.findall("## " + section(one.step.title)))
            stale = (printed ^ shown) - DEPENDS
            assert not stale, f"{one.step.title}: run docs/make_road.py again"


def test_the_road_ends_with_a_model_that_answers(walked: list[Walked]) -> None:
    found = {one.step.title: "\n".join(one.lines) for one in walked}
    assert "fits into" in found["Compress it"]
    assert found["Talk to it"].count("of 1024 tokens") == 2
    assert '"completion_tokens": 8' in found["Ask it, from another terminal"]
    assert "model.gguf" in found["Share it"]

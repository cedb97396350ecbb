"""Make the pictures of the documentation from what the tool writes, in a real browser.

    python docs/make_pictures.py DEMO

DEMO: what `tenp-edge demo -o DEMO` left. Writes docs/pictures/report.png, the top of its
report.html, and docs/pictures/chat.png, its chat page after one short answer. Needs the packages
of `pip install tenp-edge[dev]` and Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from playwright.sync_api import expect
from support.browser import Chromium, launched, opened

PICTURES = Path(__file__).parent / "pictures"
MOST_BYTES = 200_000
_SIZE = {"width": 1100, "height": 1252}
_CHAT_SIZE = {"width": 1000, "height": 620}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the directory that `tenp-edge demo` wrote")
    demo = parser.parse_args().demo.resolve()
    PICTURES.mkdir(exist_ok=True)
    with launched() as chromium:
        report(chromium, demo, PICTURES / "report.png")
        chat(chromium, demo, PICTURES / "chat.png")
    for file in PICTURES.glob("*.png"):
        assert file.stat().st_size < MOST_BYTES, f"{file} has {file.stat().st_size} bytes"


def report(chromium: Chromium, demo: Path, target: Path) -> None:
    """The verdict, the memory and the losses."""
    with opened(chromium, demo / "report.html", viewport=_SIZE) as (page, _):
        page.screenshot(path=target)


def chat(chromium: Chromium, demo: Path, target: Path) -> None:
    """A question and the beginning of an answer, always the same."""
    settings = '{"temperature": 0, "max_tokens": 60}'
    context = {"viewport": _CHAT_SIZE, "color_scheme": "dark"}
    with served(demo) as address, opened(chromium, "about:blank", **context) as (page, _):
        page.add_init_script(f"localStorage['tenp-edge-settings'] = '{settings}'")
        page.goto(address)
        page.locator("#input").fill("Write a function that reads a file.")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=60_000)
        page.screenshot(path=target)


@contextmanager
def served(file: Path) -> Iterator[str]:
    """The address of a server of ``file``."""
    command = [sys.executable, "-m", "tenp_edge", "serve", str(file), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = (re.search(r"http://[\d.]+:\d+", line) for line in process.stderr)
        yield next(match[0] for match in found if match)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()

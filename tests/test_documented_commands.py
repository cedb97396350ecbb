"""Every command of the documentation is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tenp_edge.cli.flags.declared import settings_rows
from tenp_edge.cli.main import VERBS, loaded_verb

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
# cli.md is made from the command line itself.
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "cli.md"]
_BLOCK = re.compile(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(tenp-edge [^`\n]+)`")
_UsageError = typer.BadParameter.__bases__[0]  # click's own, or of the copy that typer brings
_END = {"|", "||", "&&", "&", ";", ">", ">>", "2>", "<"}


def typed(text: str) -> Iterator[list[str]]:
    """The words after `tenp-edge` of every command in a page."""
    blocks = "\n".join(_BLOCK.findall(text)).replace("\\\n", " ")
    lines = [*blocks.splitlines(), *_INLINE.findall(text)]
    for line in lines:
        words = shlex.split(line, comments=True) if "tenp-edge " in line else []
        for at, word in enumerate(words):
            if word == "tenp-edge":
                rest = words[at + 1 :]
                end = next((n for n, one in enumerate(rest) if one in _END), len(rest))
                yield [one for one in rest[:end] if one != "..."]


def refusal(words: list[str]) -> str:
    """Why the command line does not take ``words``; empty where it does."""
    verb, *arguments = words
    if not verb.isalpha():
        return ""  # --version, or a directory of docker's
    if verb not in VERBS:
        return f"there is no verb {verb}"
    try:
        context = loaded_verb(verb).make_context(verb, arguments)
    except typer.Exit:
        return ""
    except _UsageError as error:
        # In a sentence the model is not said again.
        return "" if "issing" in type(error).__name__ else str(error)
    known = {row[0] for row in settings_rows()}
    given = [one.partition("=")[0] for one in context.params.get("settings") or ()]
    return "".join(f"there is no setting {name}" for name in given if name not in known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_parse(page: Path) -> None:
    for words in typed(page.read_text(encoding="utf-8")):
        assert not refusal(words), f"tenp-edge {shlex.join(words)}: {refusal(words)}"

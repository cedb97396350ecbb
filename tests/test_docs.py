"""The documentation: links lead somewhere, the README is short, the examples run."""

from __future__ import annotations

import re
from pathlib import Path

import make_results
import pytest
from fit_table import PROFILES
from records import load

import tenp_edge

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TEMPLATE = RESULTS / "template.md"
GUIDE = ROOT / "docs" / "guide.md"
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page != TEMPLATE]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
MOST_README_LINES = 130

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of ``page``."""
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_page_can_be_found_from_the_index() -> None:
    listed = _LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    here = {(ROOT / "docs" / link).resolve() for link in listed}
    missing = [page.name for page in PAGES[1:] if page.resolve() not in here]
    assert missing == ["index.md"]


def test_the_results_are_those_of_the_records() -> None:
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == make_results.render(), "run: python docs/make_results.py"
    assert GUIDE.read_text(encoding="utf-8") == make_results.render_guide()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_record_says_what_was_run_and_is_shown(file: Path) -> None:
    record = load(file)
    assert re.match(r"(python benchmarks/\w+\.py|tenp-edge compare)( |$)", record.command)
    assert record.date or "older run" in record.note
    assert not re.search(r'[" =]/\w', file.read_text(encoding="utf-8")), "a path"
    template = "".join(page.read_text(encoding="utf-8") for page in (TEMPLATE, GUIDE))
    for table in record.tables:
        shown = rf"\{{\{{table [^}}]*\b{re.escape(f'{file.stem}.{table}')}[ }}]"
        assert re.search(shown, template), table


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_README_LINES


def test_the_readme_says_of_each_model_what_the_record_says() -> None:
    published = load(RESULTS / "fits.json").tables["fits"].rows
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Models\n")[2]
    lines = section.partition("\n## ")[0].splitlines()
    table = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert table[0][1:-1] == list(PROFILES) and len(table) > 10
    for family, *fits, _ in table[1:]:
        name = family.removeprefix("| ").rpartition(": ")[2]
        (row,) = [row for row in published if row["model"].partition("/")[2].startswith(name)]
        assert fits == [row[memory] for memory in PROFILES], name


def test_numbers_begin_with_a_digit() -> None:
    short = re.compile(r"(?<![\w./\d])[±-]?\.\d")
    for page in PAGES:
        text = _CODE.sub("", page.read_text(encoding="utf-8"))
        assert not short.findall(text), page.name


def test_code_and_profiles_name_pages_that_exist() -> None:
    named = re.compile(r"(?<![\w/])docs/[\w./-]+\.(?:md|py)")
    for folder in ("tenp_edge", "exporters", "profiles", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix not in (".py", ".toml", ".md") or "calibration_text" in file.parts[:-1]:
                continue
            for page in named.findall(file.read_text(encoding="utf-8")):
                assert (ROOT / page).exists(), f"{file.name} names {page}"


def test_the_examples_in_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = _PYTHON.findall(page)
    exec("\n".join(blocks), {})
    said = capsys.readouterr().out
    assert "True" in said and "the smallest plan needs" in said
    for name in tenp_edge.__all__:
        assert f"`{name}`" in page, f"{name} is exported and not in docs/python.md"

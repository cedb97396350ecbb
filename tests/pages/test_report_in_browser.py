"""The report as a browser shows it: offline, on phones, in the dark, by keyboard, in print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.browser import PHONE, Chromium, faint, opened, sideways

SCHEMES = ("light", "dark")


def test_it_is_silent_and_needs_no_network(chromium: Chromium, small_run: Path) -> None:
    with opened(chromium, small_run / "report.html", offline=True) as (page, seen):
        assert page.locator("h1").count() == 1
        checked = json.loads((small_run / "validation.json").read_text())
        shown = page.locator(".figures").inner_text()
        assert f"{100 * checked['overall']['same_top']:.1f} %" in shown
        assert (seen.errors, seen.failed, seen.requests) == ([], [], [])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_can_be_read(chromium: Chromium, small_run: Path, scheme: str) -> None:
    with opened(chromium, small_run / "report.html", color_scheme=scheme) as (page, _):
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert faint(page) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(20, 23, 27)") is (scheme == "dark")


def test_a_phone_does_not_scroll_sideways(chromium: Chromium, small_run: Path) -> None:
    with opened(chromium, small_run / "report.html", viewport=PHONE) as (page, _):
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert sideways(page) == []
        assert page.locator("svg.wide").evaluate_all("all => all.every(o => !o.checkVisibility())")
        letters = page.locator("svg.plot.narrow text").first
        assert letters.bounding_box()["height"] >= 9  # type: ignore[index]


def test_the_keyboard_reaches_everything(chromium: Chromium, small_run: Path) -> None:
    with opened(chromium, small_run / "report.html") as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
        reached = set()
        for _step in range(80):
            page.keyboard.press("Tab")
            name = page.evaluate(
                "document.activeElement.matches('summary') ? document.activeElement.textContent"
                " : document.activeElement.getAttribute('aria-label')"
            )
            reached.add(name)
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or name is None
        wanted = {"The numbers", "All numbers", "recipe.toml", "Hashes", "Versions"}
        assert wanted | {"Memory by part", "Predicted against measured"} <= reached
        page.locator("summary", has_text="All numbers").focus()
        page.keyboard.press("Enter")
        assert page.get_by_role("table", name="The file as it runs, by domain").is_visible()


def test_it_says_what_it_is_to_those_who_do_not_see_it(chromium: Chromium, small_run: Path) -> None:
    with opened(chromium, small_run / "report.html") as (page, _):
        for role in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(role).count() == 1, role
        sections = page.locator("main > section")
        for number in range(sections.count()):
            assert sections.nth(number).get_attribute("aria-labelledby")
        for picture in page.locator("svg:not([aria-hidden])").all():
            assert picture.get_attribute("role") == "img" and picture.get_attribute("aria-label")
        for link in page.locator("nav a").all():
            assert page.locator(link.get_attribute("href") or "").count() == 1


def test_printed_it_is_on_paper(chromium: Chromium, small_run: Path) -> None:
    with opened(chromium, small_run / "report.html", color_scheme="dark") as (page, _):
        page.emulate_media(media="print", color_scheme="light")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert not page.locator("nav").is_visible()
        assert page.pdf().startswith(b"%PDF")

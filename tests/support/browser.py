"""A real browser for the tests: headless Chromium or Chrome of the machine, through playwright.

One browser runs for the whole test session (`browser` in conftest.py); every page has a context of
its own: no cookies, no storage of another test. What goes wrong inside a page is collected, not
printed: errors on its console, exceptions that nobody caught, requests that failed or left for
another host.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

NO_BROWSER = "no Chromium or Chrome on this machine"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    ),
}
# Nothing but the pages of the tests may use the network, and a machine without a GPU has none.
_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1200, "height": 900}


def executable() -> str | None:
    """The browser of this machine, None without any."""
    named = (shutil.which(name) for name in _NAMES)
    placed = (place for place in _PLACES.get(sys.platform, ()) if Path(place).is_file())
    return next((found for found in (*named, *placed) if found), None)


@dataclass(frozen=True)
class Chromium:
    """A running browser. playwright's loop counts as running in this thread for as long as it
    lives; outside `opened` it is hidden, so that other tests can run loops of their own."""

    browser: Browser
    loop: asyncio.AbstractEventLoop

    @contextmanager
    def awake(self) -> Iterator[None]:
        events._set_running_loop(self.loop)
        try:
            yield
        finally:
            events._set_running_loop(None)


@contextmanager
def launched() -> Iterator[Chromium]:
    """The browser, its user data in a directory that is gone afterwards."""
    found = executable()
    if found is None:
        pytest.skip(NO_BROWSER)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    flags = [*_FLAGS, *(["--no-sandbox"] if is_root else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=flags)
        chromium = Chromium(browser, asyncio.get_running_loop())
        events._set_running_loop(None)
        try:
            yield chromium
        finally:
            events._set_running_loop(chromium.loop)
            browser.close()


@dataclass
class Seen:
    """What a page did. ``requests``: the addresses that it asked for, its own aside."""

    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)
        page.on("requestfailed", lambda request: self.failed.append(request.url))
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, request: Request) -> None:
        if not request.is_navigation_request() and not request.url.startswith("data:"):
            self.requests.append(request.url)

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.failed.append(f"{response.status} {response.url}")


@contextmanager
def opened(chromium: Chromium, address: str | Path, **context: Any) -> Iterator[tuple[Page, Seen]]:
    """``address`` (or a file) in a page of its own; ``context``: viewport, color_scheme, ..."""
    with chromium.awake(), chromium.browser.new_context(**{"viewport": DESKTOP, **context}) as made:
        page, seen = made.new_page(), Seen()
        seen.watch(page)
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        yield page, seen


_OVERFLOWING = """() => {
  const room = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll('body *')].filter(element => {
    for (let parent = element.parentElement; parent; parent = parent.parentElement) {
      if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(parent).overflowX))
        return false;
    }
    return element.getBoundingClientRect().right > room + 1;
  });
  return document.documentElement.scrollWidth > room || wide.length
    ? wide.slice(0, 5).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40))
      .concat(['page: ' + document.documentElement.scrollWidth + ' of ' + room]) : [];
}"""


def sideways(page: Page) -> list[str]:
    """What makes ``page`` scroll sideways; a box of its own may."""
    found: list[str] = page.evaluate(_OVERFLOWING)
    return found


# WCAG 2.2: relative luminance and contrast ratio; backgrounds are laid over one another.
_CONTRAST = """() => {
  const rgba = text => {
    const canvas = rgba.canvas ||= new OffscreenCanvas(1, 1).getContext('2d',
      {willReadFrequently: true});
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      layers.push(colour); if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((under, top) => over(top, under),
      getComputedStyle(document.documentElement).colorScheme.includes('dark') &&
      matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255]);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    if (style.visibility === 'hidden' || ['SCRIPT', 'STYLE', 'TITLE'].includes(element.tagName))
      continue;
    if (element.closest('[aria-disabled=true], :disabled')) continue;
    const svg = element.closest('svg'), own = behind(svg ? svg.parentElement : element);
    const front = over(rgba(svg ? style.fill : style.color), own);
    const [light, dark] = [luminance(front), luminance(own)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5 && !element.dataset.on)
      low.push(node.data.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return [...new Set(low)];
}"""


def faint(page: Page) -> list[str]:
    """Text of ``page`` whose contrast with what is behind it is below 4.5."""
    found: list[str] = page.evaluate(_CONTRAST)
    return found

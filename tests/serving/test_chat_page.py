"""The chat page: in a real browser against a real served file, and what its policy forbids."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect
from support.browser import PHONE, Chromium, Seen, faint, opened, sideways
from support.serving_cases import Server

from tenp_edge.serving.chat_page import chat_page

_KEY = "sessionStorage.setItem('tenp-edge-key', 'none')"
_SOME = re.compile(r"\S", re.S)


@contextmanager
def chatting(
    chromium: Chromium, server: Server, *, tokens: int | None = 12, **context: Any
) -> Iterator[tuple[Page, Seen]]:
    """The page with the server's key; answers have ``tokens`` tokens, None: all that fit. A random
    model ends at random: here it may not."""

    def endless(route: Route) -> None:
        route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})

    settings = json.dumps({} if tokens is None else {"max_tokens": tokens})
    with opened(chromium, "about:blank", **context) as (page, seen):
        page.add_init_script(_KEY)
        page.add_init_script(f"localStorage['tenp-edge-settings'] ||= '{settings}'")
        page.route("**/v1/chat/completions", endless)
        page.goto(server.url)
        expect(page).to_have_title(re.compile(" · tenp-edge$"))
        yield page, seen


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").last.fill(text)
    page.keyboard.press("Enter")


def said(page: Page) -> str:
    """The last answer, once it is complete."""
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    return page.locator(".assistant .text").last.inner_text()


# -- the page itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("has_template", [True, False])
def test_the_policy_names_its_own_style_and_script_alone(has_template: bool) -> None:
    made = chat_page(has_template)
    html, policy = made.body.decode(), made.headers["Content-Security-Policy"]
    for name in ("style", "script"):
        (inline,) = re.findall(f"<{name}>(.*?)</{name}>", html, re.S)
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(?:src|href)=\"(?!#|data:,\")", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html)
    assert f'data-template="{"yes" if has_template else "no"}"' in html


def test_it_is_served_without_a_key_and_what_it_asks_is_not(shared: Server) -> None:
    found = shared.http.get("/", headers={"authorization": ""})
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert shared.http.get("/v1/models", headers={"authorization": ""}).status_code == 401
    assert shared.http.get("/favicon.ico", headers={"authorization": ""}).status_code == 204


# -- a conversation --------------------------------------------------------------------------------


def test_an_answer_streams_and_shows_its_speed(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, seen):
        expect(page.get_by_role("log")).to_contain_text("Nothing leaves it")
        send(page, "Hello <b>there</b>")
        assert said(page)
        assert page.locator(".user .text").inner_text() == "Hello <b>there</b>"
        expect(page.locator(".assistant .tools")).to_have_text(
            re.compile(r"12 tokens, [\d.]+ tokens/s, cut at the limit")
        )
        expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ of 2,048 tokens of context"))
        assert (seen.errors, seen.failed) == ([], [])
        assert all(request.startswith(shared.url) for request in seen.requests)


def test_stop_ends_it_and_keeps_what_is_there(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared, tokens=None) as (page, seen):
        button = page.get_by_role("button", name="Stop")
        for ends in (button.click, lambda: page.keyboard.press("Escape")):
            page.get_by_role("button", name="New conversation").click()
            send(page, "Go on")
            expect(page.locator(".assistant .text")).to_have_text(_SOME)
            ends()
            expect(page.locator(".assistant .tools")).to_contain_text("stopped")
            assert said(page)
        assert shared.wait_for(running=0, waiting=0, seconds=10) < 10
        assert seen.errors == []


def test_a_reload_in_the_middle_keeps_what_is_there(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared, tokens=None) as (page, seen):
        send(page, "Go on")
        expect(page.locator(".assistant .text")).to_have_text(_SOME)
        page.reload()
        assert said(page)
        assert shared.wait_for(running=0, waiting=0, seconds=10) < 10
        assert seen.errors == []


def test_regenerate_edit_and_reload(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, seen):
        send(page, "First")
        said(page)
        send(page, "Second")
        before = said(page)
        page.get_by_role("button", name="Regenerate").click()
        expect(page.locator(".assistant .text").last).not_to_have_text(before)
        after = said(page)
        assert page.locator("article").count() == 4
        page.reload()
        assert said(page) == after and page.locator("article").count() == 4
        page.get_by_role("button", name="Edit").first.click()
        page.get_by_label("Edit the message").fill("Another first")
        page.keyboard.press("Control+Enter")
        said(page)
        assert page.locator(".user .text").all_inner_texts() == ["Another first"]
        assert seen.errors == []


def test_several_conversations_are_kept(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, _):
        page.on("dialog", lambda dialog: dialog.accept())
        for title in ("About cats", "About dogs"):
            page.get_by_role("button", name="New conversation").click()
            send(page, title)
            said(page)
        page.reload()
        titles = page.locator("#chats .title")
        expect(titles).to_have_text(["About dogs", "About cats"])
        titles.last.click()
        expect(page.locator(".user .text")).to_have_text("About cats")
        page.get_by_role("button", name="Delete About cats").click()
        expect(titles).to_have_text(["About dogs"])
        expect(page.locator("article")).to_have_count(0)


def test_the_system_prompt_and_settings_are_sent(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, _):
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Max tokens").fill("3")
        page.get_by_role("button", name="Done").click()
        with page.expect_request("**/v1/chat/completions") as asked:
            send(page, "Hi")
        body = asked.value.post_data_json
        assert body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ]
        assert (body["temperature"], body["max_tokens"], "top_p" in body) == (0, 3, False)
        said(page)


def test_a_refusal_is_shown_in_the_servers_words(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, _):
        send(page, "word " * 5000)
        expect(page.get_by_role("alert")).to_have_text(re.compile("available context size of 2048"))
        expect(page.locator(".assistant")).to_have_count(0)
        expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_key_is_asked_for_and_remembered_if_wanted(chromium: Chromium, shared: Server) -> None:
    with opened(chromium, shared.url) as (page, _):
        for key, why in (("wrong", "the API key is wrong"), ("none", None)):
            page.get_by_label("API key").fill(key)
            page.get_by_label("Remember it").check()
            page.get_by_role("button", name="Continue").click()
            if why:
                expect(page.get_by_role("dialog")).to_contain_text(why)
        expect(page).to_have_title(re.compile(" · tenp-edge$"))
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.evaluate("localStorage['tenp-edge-key']") == "none"


# -- a model without a template --------------------------------------------------------------------


def test_without_a_template_a_text_goes_on(chromium: Chromium, shared: Server) -> None:
    """The page of such a file, in front of the same server."""
    made = chat_page(has_template=False)
    with opened(chromium, "about:blank") as (page, seen):
        page.add_init_script(_KEY)
        page.route(
            f"{shared.url}/",
            lambda route: route.fulfill(
                body=made.body, headers=dict(made.headers), content_type="text/html"
            ),
        )
        page.goto(shared.url)
        text = page.get_by_role("textbox", name="Text", exact=True)
        text.fill("Once upon a time")
        with page.expect_request("**/v1/completions") as asked:
            page.get_by_role("button", name="Continue").click()
        assert asked.value.post_data_json["prompt"] == "Once upon a time"
        expect(page.get_by_role("button", name="Undo")).to_be_visible()
        assert re.fullmatch(r"\d+ tokens, [\d.]+ tokens/s", page.locator("#status").inner_text())
        grown = text.input_value()
        assert grown.startswith("Once upon a time") and grown != "Once upon a time"
        page.reload()
        expect(text).to_have_value(grown)
        page.get_by_role("button", name="Undo").click()
        expect(text).to_have_value("Once upon a time")
        assert seen.errors == []


# -- what a model may write ------------------------------------------------------------------------

_HOSTILE = """<img src=x onerror=alert(1)> <script>alert(1)</script> [x](javascript:alert(1)) \
[ok](https://example.org/a) **bold *both*** `<i>`

```html
</code></pre><script>alert(2)</script>
```

- one
  - two
1. three

| a | b |
|---|---|
| <b> | **c** |"""


def test_markdown_is_rendered_and_can_do_no_harm(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, seen):
        page.evaluate(
            "text => { const box = render(text, element('div', {id: 'probe'}));"
            " document.querySelector('main').append(box); }",
            _HOSTILE,
        )
        probe = page.locator("#probe")
        assert probe.locator("img, script, i, b").count() == 0
        assert [link.get_attribute("href") for link in probe.locator("a").all()] == [
            "https://example.org/a"
        ]
        assert probe.locator("a").get_attribute("rel") == "noopener noreferrer"
        assert "[x](javascript:alert(1))" in probe.locator("p").first.inner_text()
        assert probe.locator("pre code").inner_text().startswith("</code></pre><script>")
        assert probe.locator("strong").all_inner_texts() == ["bold both", "c"]
        assert probe.locator("ul > li > ul > li").inner_text() == "two"
        assert probe.locator("ol > li").inner_text() == "three"
        assert probe.locator("td").all_inner_texts() == ["<b>", "c"]
        with pytest.raises(Exception, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = 'x'")
        seen.errors.clear()


@pytest.mark.parametrize("again", [">", "1. ", "- + "])
def test_a_model_that_repeats_itself_is_shown(
    chromium: Chromium, shared: Server, again: str
) -> None:
    with chatting(chromium, shared) as (page, seen):
        deep = page.evaluate(
            "text => render(text, element('div')).querySelectorAll('blockquote, ol, ul').length",
            5000 * again,
        )
        assert deep == 16 and seen.errors == []


def test_what_a_model_writes_does_not_end_its_answer(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, _):
        found = page.evaluate(
            "async sent => { const found = [];"
            " for await (const data of events(new Response(sent))) found.push(data);"
            " return found; }",
            'data: {"text": "[DONE]"}\n\ndata: [DONE]\n\n',
        )
        assert found == [{"text": "[DONE]"}]


def test_thoughts_are_folded(chromium: Chromium, shared: Server) -> None:
    kept = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>Hm, <b>hm</b>.</think>\n\nHello."},
    ]
    chats = {"current": "a", "chats": [{"id": "a", "title": "t", "system": "", "messages": kept}]}
    with opened(chromium, "about:blank") as (page, _):
        page.add_init_script(_KEY)
        page.add_init_script(f"localStorage['tenp-edge-chats'] = {json.dumps(json.dumps(chats))}")
        page.goto(shared.url)
        expect(page.locator(".assistant .text > p")).to_have_text("Hello.")
        thoughts = page.locator(".thinking div")
        expect(thoughts).to_be_hidden()
        page.get_by_text("Thoughts").click()
        expect(thoughts).to_have_text("Hm, <b>hm</b>.")


# -- whom it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_can_read_all_of_it(chromium: Chromium, shared: Server, scheme: str) -> None:
    with chatting(chromium, shared, viewport=PHONE, color_scheme=scheme) as (page, seen):
        send(page, "Hello")
        said(page)
        expect(page.get_by_role("button", name="Regenerate")).to_be_in_viewport(ratio=1)
        page.evaluate("$('model').textContent = 'A model with a long name, 235B-A22B-Thinking'")
        assert sideways(page) == [] and faint(page) == []
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator("#chats .title")).to_be_in_viewport()
        assert faint(page) == []
        page.keyboard.press("Escape")
        expect(page.locator("#chats .title")).not_to_be_in_viewport()
        page.get_by_role("button", name="Settings").click()
        assert sideways(page) == [] and seen.errors == []


def test_the_keyboard_reaches_everything(chromium: Chromium, shared: Server) -> None:
    with chatting(chromium, shared) as (page, _):
        assert page.evaluate("document.activeElement.id") == "input"
        send(page, "Hello")
        said(page)
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _step in range(20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.textContent.trim()"))
        assert {"New conversation", "Hello", "Settings", "Edit", "Copy", "Regenerate"} <= reached
        for role in ("main", "complementary", "banner"):
            assert page.get_by_role(role).count() == 1, role

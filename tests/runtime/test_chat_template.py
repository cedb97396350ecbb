"""Chat templates that anyone may have made: bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.edits import refusal

from tenp_edge.runtime.chat_template import TemplateError, TemplateProcess

MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
HINT = "another file: its chat template is broken or hostile"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(s='ab') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
)


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess(1.0)


@pytest.mark.parametrize("text", [LOOPS, "{{ lipsum(n=100000) }}"])
def test_templates_end_in_time(process: TemplateProcess, text: str) -> None:
    process.render("warm", {})
    begun = time.monotonic()
    expected = ("the chat template takes over 1 seconds", HINT)
    assert refusal(lambda: process.render(text, MESSAGES)) == expected
    assert time.monotonic() - begun < 10
    assert process.render("{{ messages[0].content }}", MESSAGES) == "Hi"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * (6 * 10**9) }}",
        "{{ 'a'|center(5000000000) }}",
        "{{ '%5000000000d' % 1 }}",
        "{{ [1] * 3000000000 }}",
    ],
)
def test_templates_end_in_memory(process: TemplateProcess, text: str) -> None:
    expected = ("the chat template needs too much memory", HINT)
    assert refusal(lambda: process.render(text, MESSAGES)) == expected


def test_templates_that_double_a_string() -> None:
    assert refusal(lambda: TemplateProcess(20.0).render(DOUBLING, {})) == (
        "the chat template needs too much memory",
        HINT,
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "is nested too deep"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "is nested too deep"),
        ("{{ '\\ud800' }}", "makes text that is not Unicode"),
    ],
)
def test_templates_with_limits_of_other_kinds(
    process: TemplateProcess, text: str, why: str
) -> None:
    assert refusal(lambda: process.render(text, MESSAGES)) == (f"the chat template {why}", HINT)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        (
            "{{ range(100000000) }}",
            "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE "
            "(100000).",
        ),
        ("{{ raise_exception('user\nfirst') }}", "user first"),
        ("{{ messages.x.y }}", "'list object' has no attribute 'x'"),
        (
            "{{ ''.__class__.__mro__ }}",
            "access to attribute '__class__' of 'str' object is unsafe.",
        ),
    ],
)
def test_templates_that_fail(process: TemplateProcess, text: str, why: str) -> None:
    with pytest.raises(TemplateError) as caught:
        process.render(text, MESSAGES)
    assert str(caught.value) == why


def test_one_template_at_a_time(process: TemplateProcess) -> None:
    found: list[str] = []

    def render(number: int) -> None:
        found.append(process.render("{{ n }}", {"n": number}))

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [str(number) for number in range(8)]


def test_the_process_ends_with_ours() -> None:
    code = (
        "from tenp_edge.runtime.chat_template import PROCESS; "
        "assert PROCESS.render('{{ 6 * 7 }}', {}) == '42'; print(PROCESS._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(f"/proc/{int(done.stdout)}").exists() and not done.stderr

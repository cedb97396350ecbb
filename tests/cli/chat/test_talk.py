"""Conversations at a real terminal: keys, commands, Ctrl-C, a full context, memory."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.terminal import (
    ALT_ENTER,
    BACKSPACE,
    CTRL_A,
    CTRL_C,
    CTRL_D,
    ENTER,
    LEFT,
    TAB,
    UP,
    Terminal,
    at_terminal,
)

from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import predict_peak

SMALL = ("--threads", 1, "--kv-type", "F32", "--temperature", 0)
SHORT = (*SMALL, "--context", 256, "-n", 4)


@pytest.fixture
def terminal(chat_file: Path, tmp_path: Path) -> Iterator[Terminal]:
    with at_terminal("run", chat_file, *SHORT, state=tmp_path) as opened:
        opened.ready()
        yield opened


def asked(directory: Path) -> list[str]:
    """The questions in a file that /save wrote."""
    [record] = (directory / "saved.jsonl").read_text().splitlines()
    return [m["content"] for m in json.loads(record)["messages"] if m["role"] == "user"]


def save(terminal: Terminal, directory: Path) -> list[str]:
    terminal.say(f"/save {directory / 'saved.jsonl'}")
    terminal.expect(" messages are in ")
    terminal.ready()
    return asked(directory)


def answer(terminal: Terminal) -> str:
    """Wait for the end of an answer, and for the prompt."""
    shown = terminal.expect(" of 256 tokens")
    terminal.ready()
    return shown


def test_editing_keys_and_messages_of_several_lines(terminal: Terminal, tmp_path: Path) -> None:
    terminal.press("lo wordl", BACKSPACE, BACKSPACE, "ld", CTRL_A, "hel", ENTER)
    answer(terminal)
    terminal.press("ac", LEFT, "b", ENTER)
    answer(terminal)
    terminal.press("one", ALT_ENTER, "two", ENTER)
    answer(terminal)
    terminal.press('"""three', ENTER, "four", ENTER, '"""', ENTER)
    answer(terminal)
    terminal.press("\x1b[200~pasted\rlines\x1b[201~", ENTER)  # as terminals send what is pasted
    answer(terminal)
    terminal.press("ahead", ENTER, "again", ENTER, "/nothing", ENTER)  # in one read
    for said in (" of 256 tokens", " of 256 tokens", "error: there is no command /nothing"):
        terminal.expect(said)
    terminal.ready()
    wanted = ["hello world", "abc", "one\ntwo", "three\nfour", "pasted\nlines", "ahead", "again"]
    assert save(terminal, tmp_path) == wanted
    terminal.press(CTRL_D)
    assert terminal.end() == 0


def test_the_history_outlives_the_conversation(chat_file: Path, tmp_path: Path) -> None:
    with at_terminal("run", chat_file, *SHORT, state=tmp_path) as first:
        first.ready()
        first.say("remember me")
        answer(first)
        first.say("/bye")
        assert first.end() == 0
    kept = tmp_path / "tenp-edge" / "history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with at_terminal("run", chat_file, *SHORT, state=tmp_path) as second:
        second.ready()
        second.press(UP, UP, ENTER)
        answer(second)
        assert save(second, tmp_path) == ["remember me"]
    with at_terminal("run", chat_file, *SHORT, "--no-history", state=tmp_path) as third:
        third.ready()
        third.say("secret")
        answer(third)
    assert "remember me" in kept.read_text() and "secret" not in kept.read_text()


def test_commands(terminal: Terminal, tmp_path: Path) -> None:
    terminal.say("/help")
    shown = terminal.expect("Ctrl-D")
    assert all(name in shown for name in ("/clear", "/system", "/save", "/regenerate", "/exit"))
    terminal.ready()
    terminal.say("/system Be brief")
    terminal.expect("from now on this is the system message")
    terminal.ready()
    terminal.say("Hi")
    answer(terminal)
    terminal.press("/reg", TAB, ENTER)
    answer(terminal)
    assert save(terminal, tmp_path) == ["Hi"]
    for typed, said in (
        ("/clear", "what was said is forgotten"),
        ("/regenerate", "error: there is no answer yet"),
        ("/nonsense", "error: there is no command /nonsense"),
        (f"/save {tmp_path / 'saved.jsonl'}", "exists already"),
        (f"/load {tmp_path / 'saved.jsonl'}", "3 messages are loaded"),
        ("/system", "Be brief"),
    ):
        terminal.say(typed)
        terminal.expect(said)
        terminal.ready()
    terminal.say("/etc/hosts is a file")
    answer(terminal)
    terminal.say("/exit")
    assert terminal.end() == 0


def test_ctrl_c_stops_an_answer_and_leaves_at_the_prompt(chat_file: Path, tmp_path: Path) -> None:
    with at_terminal("run", chat_file, *SMALL, "--context", 8192, state=tmp_path) as terminal:
        terminal.ready()
        terminal.say("go on")
        terminal.expect("\n")
        terminal.expect_more(20)
        terminal.press(CTRL_C)
        terminal.expect("stopped\n")
        terminal.ready()
        assert save(terminal, tmp_path) == ["go on"]
        [record] = (tmp_path / "saved.jsonl").read_text().splitlines()
        assert json.loads(record)["messages"][1]["content"], "the half answer stays"
        terminal.press("not sent", CTRL_C)
        terminal.press(CTRL_C)
        assert terminal.end() == 130
        assert "Traceback" not in terminal.shown


def test_a_full_context(chat_file: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--context", 128, "--system", "S")
    with at_terminal("run", chat_file, *flags, state=tmp_path) as terminal:
        terminal.ready()
        for forgets in (False, True):
            terminal.say("go on")
            if forgets:
                terminal.expect("the context is full: the oldest turn is forgotten")
            terminal.expect("the answer was cut: the context of 128 tokens is full")
            terminal.ready()
        terminal.say("word " * 200)
        terminal.expect("tokens with its template and the system message, the context holds 128")
        terminal.expect("try:   a shorter message, or a larger --context")
        terminal.ready()
        terminal.say("last")
        terminal.expect("tokens/s")
        terminal.ready()
        assert save(terminal, tmp_path) == ["last"]
        [record] = (tmp_path / "saved.jsonl").read_text().splitlines()
        assert json.loads(record)["messages"][0] == {"role": "system", "content": "S"}


def test_a_conversation_stays_within_what_is_predicted(chat_file: Path, tmp_path: Path) -> None:
    """The process of the model holds no line editor, and while it computes nobody does."""
    context = 2048
    flags = ("--threads", 1, "--kv-type", "F16", "--context", context, "-n", 8)
    with at_terminal("run", chat_file, *flags, state=tmp_path) as terminal:
        terminal.ready()
        words = " ".join(f"{number}" for number in range(450))
        for _ in range(2):
            terminal.press(f'"""{words}"""', ENTER)
            terminal.expect(f" of {context} tokens")
            terminal.ready()
        pid = terminal.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024
    assert peak <= predict_peak(chat_file, MemoryRun(context, 512, "F16", 1)).total_bytes


def test_the_editor_ends_with_its_model(terminal: Terminal) -> None:
    pid = terminal.process.pid
    [editor] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == -signal.SIGTERM
    status, limit = Path(f"/proc/{editor}/status"), time.monotonic() + 20
    while status.exists() and "(zombie)" not in status.read_text():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_colours_are_left_out(chat_file: Path, tmp_path: Path) -> None:
    with at_terminal("run", chat_file, "-p", "Hi", *SHORT, state=tmp_path, NO_COLOR="1") as plain:
        assert plain.end() == 0
        assert "\x1b" not in plain.raw
    with at_terminal("run", chat_file, "-p", "Hi", *SHORT, state=tmp_path) as coloured:
        assert coloured.end() == 0
        assert "\x1b[2m" in coloured.raw
    with at_terminal("run", chat_file, *SHORT, state=tmp_path, TERM="dumb") as dumb:
        dumb.ready()
        dumb.say("Hi")
        answer(dumb)
        dumb.press(CTRL_D)
        assert dumb.end() == 0
        assert "\x1b" not in dumb.raw, "a line editor needs a terminal that moves its cursor"


def test_raw_text_at_a_terminal_needs_a_prompt(chat_file: Path, tmp_path: Path) -> None:
    for flag, why in (("--raw", "--raw continues a text"), ("--json", "--json is for programs")):
        with at_terminal("run", chat_file, flag, state=tmp_path) as terminal:
            assert terminal.end() == 2
            assert terminal.shown == (
                f'error: there is no prompt: {why}\ntry:   -p "Once upon a time"\n'
            )

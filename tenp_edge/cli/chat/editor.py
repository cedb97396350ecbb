"""The process that reads a question at the terminal: facts as JSON in, a line of JSON out.

    {"prompt", "more", "words", "history", "ahead"} -> {"text"}, or {"end": "eof" | "interrupt"};
    and "ahead": keys that were pressed after the question, for the next one

It draws on stderr. `lines` starts it for every question: the process of the model stays as small as
`--ram` says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.shortcuts.prompt import CompleteStyle, PromptSession

_QUOTES = '"""'
_MOST_HISTORY_BYTES = 2**18
# Linux's prctl(PR_SET_PDEATHSIG): a process whose model was killed edits for nobody.
_DIE_WITH_PARENT = 1


def main() -> None:
    """Read one question, and say what it was."""
    facts: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _leave)
    _die_with_parent()
    # Its answer could come when nobody reads it any more.
    os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
    session = _session(facts)
    store_typeahead(session.input, _pressed(facts["ahead"]))
    answer: dict[str, Any]
    try:
        answer = {"text": unquoted(session.prompt(facts["prompt"]))}
    except EOFError:
        answer = {"end": "eof"}
    except KeyboardInterrupt:
        answer = {"end": "interrupt"}
    # What was typed while the model wrote comes in one read, however many lines it has.
    answer["ahead"] = [(press.key, press.data) for press in get_typeahead(session.input)]
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # The terminal is the conversation's again. Python's own way to end takes a tenth of a second,
    # in which Ctrl-C would not find an answer to stop.
    os._exit(0)


def _session(facts: dict[str, Any]) -> PromptSession[str]:
    return PromptSession(
        output=create_output(sys.stderr),
        history=_history(facts["history"]),
        completer=_Commands(facts["words"]),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation=facts["more"],
        enable_suspend=True,
    )


def _pressed(ahead: list[tuple[str, str]]) -> list[KeyPress]:
    """Keys as they were before they were JSON."""
    named = {key.value: key for key in Keys}
    return [KeyPress(named.get(key, key), data) for key, data in ahead]


def _keys() -> KeyBindings:
    """Enter ends the question, but not between three quotes; Alt-Enter is a new line; Ctrl-C clears
    what was typed, and where there is nothing it leaves."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def is_open(text: str) -> bool:
    """Whether ``text`` begins with three quotes that are not closed yet."""
    return text.lstrip().startswith(_QUOTES) and text.count(_QUOTES) == 1


def unquoted(text: str) -> str:
    """``text`` without the quotes around it."""
    bare = text.strip()
    if not bare.startswith(_QUOTES):
        return text
    return bare.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")


class _Commands(Completer):
    """The commands, and files after one that takes a file."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not space and text.startswith("/"):
            yield from (Completion(w, -len(text)) for w in self._words if w.startswith(text))
        elif command in ("/save", "/load"):
            yield from self._files.get_completions(Document(rest), event)


class _Kept(FileHistory):
    """A history in a file; a disk that is full does not end the conversation."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history(name: str | None) -> History:
    """The history in the file ``name``, for its owner alone; none where it cannot be had."""
    if name is None:
        return InMemoryHistory()
    file = Path(name)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        _shorten(file)
    except OSError:
        return InMemoryHistory()
    return _Kept(file)


def _shorten(file: Path) -> None:
    """Keep the later half of a history that has grown large, from the beginning of an entry on."""
    if file.stat().st_size <= _MOST_HISTORY_BYTES:
        return
    later = file.read_bytes()[-_MOST_HISTORY_BYTES // 2 :]
    shorter = file.with_name(file.name + ".partial")
    shorter.touch(mode=0o600)
    shorter.write_bytes(later[max(0, later.find(b"\n#")) :])
    shorter.replace(file)


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)

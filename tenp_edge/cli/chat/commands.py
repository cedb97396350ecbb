"""What begins with "/" in a conversation on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.cli.chat.answers import Note
from tenp_edge.errors import UserError
from tenp_edge.runtime.conversation import Conversation, Turn
from tenp_edge.runtime.thinking import Reply

_COMMAND = re.compile(r"/[a-z?]*$", re.IGNORECASE)


class Left(Exception):  # noqa: N818  nothing went wrong
    """The conversation is over."""


@dataclass(frozen=True)
class Command:
    """``run`` takes the conversation and what follows the name; a reply that it gives is written.
    ``argument`` as the help shows it."""

    names: tuple[str, ...]
    argument: str
    help: str
    run: Callable[[Conversation, str, Note], Reply | None]


def is_command(text: str) -> bool:
    """Whether ``text`` is for us; a path such as /etc/hosts is for the model."""
    return bool(_COMMAND.match(text.split(" ")[0])) and "\n" not in text


def run(text: str, conversation: Conversation, note: Note) -> Reply | None:
    """Do what ``text`` says. Raises UserError where it cannot be done, Left for the end."""
    name, _, argument = text.partition(" ")
    for command in COMMANDS:
        if name.lower() in command.names:
            return command.run(conversation, argument.strip(), note)
    raise UserError(f"there is no command {name}", "/help")


def words() -> list[str]:
    """Every name, for completion."""
    return sorted(name for command in COMMANDS for name in command.names)


def _help(_: Conversation, __: str, note: Note) -> None:
    shown = [(f"{', '.join(c.names)} {c.argument}".rstrip(), c.help) for c in COMMANDS]
    width = max(len(usage) for usage, _ in shown)
    for usage, what in shown:
        note(f"{usage:{width}}  {what}")
    note('"""{0:{1}}  {2}'.format("", width - 3, "begins and ends a message of several lines"))
    note(f"{'Alt-Enter':{width}}  a new line")
    note(f"{'Ctrl-C':{width}}  stops the answer; twice, or where nothing is typed: leave")
    note(f"{'Ctrl-D':{width}}  leave")


def _clear(conversation: Conversation, _: str, note: Note) -> None:
    conversation.turns = []
    note("what was said is forgotten")


def _system(conversation: Conversation, text: str, note: Note) -> None:
    if not text:
        note(conversation.system or "there is no system message")
        return
    conversation.system = text
    note("from now on this is the system message")


def _save(conversation: Conversation, name: str, note: Note) -> None:
    file = _named(name, "/save chat.jsonl")
    record = json.dumps({"messages": conversation.messages}, ensure_ascii=False)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(record + "\n")
    except FileExistsError:
        raise UserError(f"{file} exists already", "another name") from None
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}", "another place") from None
    note(f"{len(conversation.messages)} messages are in {file}")


def _load(conversation: Conversation, name: str, note: Note) -> None:
    file = _named(name, "/load chat.jsonl")
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
        conversation.system, conversation.turns = _conversation(raw["messages"])
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "another file") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} holds no conversation", "a file that /save wrote") from None
    note(f"{len(conversation.messages)} messages are loaded")


def _conversation(messages: list[dict[str, Any]]) -> tuple[str | None, list[Turn]]:
    """System message and turns. Raises ValueError for another order of roles."""
    roles = [message["role"] for message in messages]
    system = messages[0]["content"] if roles[:1] == ["system"] else None
    said = messages[len(messages) % 2 :]
    if [message["role"] for message in said] != ["user", "assistant"] * (len(said) // 2):
        raise ValueError("no turns")
    if (len(messages) % 2 == 1) != (system is not None):
        raise ValueError("no turns")
    pairs = zip(said[::2], said[1::2], strict=True)
    return system, [Turn(asked, answered) for asked, answered in pairs]


def _named(name: str, usage: str) -> Path:
    if not name:
        raise UserError("a file is missing", usage)
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home directory for {name}", usage) from None


def _regenerate(conversation: Conversation, _: str, __: Note) -> Reply:
    return conversation.regenerate()


def _exit(_: Conversation, __: str, ___: Note) -> None:
    raise Left


COMMANDS = (
    Command(("/help", "/?"), "", "this list", _help),
    Command(("/clear",), "", "forget what was said; the system message stays", _clear),
    Command(("/system",), "[TEXT]", "show the system message, or set it", _system),
    Command(("/regenerate",), "", "answer the last message again", _regenerate),
    Command(("/save",), "FILE", "write the conversation as a line of JSON, as --data reads", _save),
    Command(("/load",), "FILE", "go on with a conversation that was saved", _load),
    Command(("/exit", "/quit", "/bye"), "", "leave", _exit),
)

"""Commands of a conversation, without a terminal around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenp_edge.cli.chat import commands
from tenp_edge.errors import UserError
from tenp_edge.runtime.conversation import Conversation, Turn
from tenp_edge.runtime.opening import RunOptions, open_model

TURN = Turn({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})


@pytest.fixture
def talk(chat_file: Path) -> Iterator[Conversation]:
    with open_model(chat_file, RunOptions(64, 1)) as session:
        made = Conversation(session, system="S")
        made.turns = [TURN]
        yield made


def test_what_is_a_command() -> None:
    assert all(map(commands.is_command, ("/help", "/?", "/save a b", "/nothing", "/HELP")))
    assert not any(map(commands.is_command, ("/etc/hosts", "a /help", "/a\nb", "/usr/bin ls")))
    assert "/regenerate" in commands.words()


def test_a_conversation_is_saved_and_loaded(talk: Conversation, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "a b.jsonl"
    commands.run(f"/save {file}", talk, said.append)
    assert json.loads(file.read_text()) == {"messages": talk.messages}
    commands.run("/clear", talk, said.append)
    assert talk.messages == [{"role": "system", "content": "S"}]
    talk.system = None
    commands.run(f"/load {file}", talk, said.append)
    assert (talk.system, talk.turns) == ("S", [TURN])
    assert said == [
        f"3 messages are in {file}",
        "what was said is forgotten",
        "3 messages are loaded",
    ]
    with pytest.raises(commands.Left):
        commands.run("/Bye", talk, said.append)


def test_what_is_refused(talk: Conversation, tmp_path: Path) -> None:
    (tmp_path / "no").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    (tmp_path / "text").write_text("not JSON")
    for typed, message in (
        ("/save", "a file is missing\ntry: /save chat.jsonl"),
        (f"/save {tmp_path / 'no'}", f"{tmp_path / 'no'} exists already\ntry: another name"),
        (
            f"/save {tmp_path / 'd' / 'x'}",
            f"{tmp_path / 'd' / 'x'} cannot be written: No such file or directory"
            "\ntry: another place",
        ),
        (
            f"/load {tmp_path}",
            f"{tmp_path} cannot be read: Is a directory\ntry: another file",
        ),
        *(
            (
                f"/load {tmp_path / name}",
                f"{tmp_path / name} holds no conversation\ntry: a file that /save wrote",
            )
            for name in ("no", "text")
        ),
        (
            "/save ~nobody-here/x",
            "there is no home directory for ~nobody-here/x\ntry: /save chat.jsonl",
        ),
        ("/what", "there is no command /what\ntry: /help"),
    ):
        with pytest.raises(UserError) as error:
            commands.run(typed, talk, lambda _: None)
        assert str(error.value) == message
    assert talk.turns == [TURN], "what cannot be loaded changes nothing"

"""What `run` does with a prompt, a pipe and a template: text, one message, or a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.chatting import make_file
from support.command import refused, run

SMALL = ("-n", 6, "--temperature", 0, "--threads", 1, "--kv-type", "F32", "--context", 128)
ONE_MESSAGE = "one message, in the model's chat template; --raw continues the text as it is"


def piped(file: Path, text: str, *flags: object) -> tuple[str, list[str]]:
    """stdout, and stderr's lines."""
    done = run("run", file, *SMALL, *flags, piped=text)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()


def test_a_prompt_is_one_message_where_there_is_a_template(chat_file: Path) -> None:
    asked, said = piped(chat_file, "", "-p", "Hi")
    assert said[1] == ONE_MESSAGE
    assert piped(chat_file, "Hi\n")[0] == asked, "and so is what is piped in"
    assert piped(chat_file, "<user>Hi\n<assistant>", "--raw")[0] == asked
    raw, said = piped(chat_file, "", "--raw", "-p", "Hi")
    assert raw != asked and ONE_MESSAGE not in said
    assert piped(chat_file, "Hi", "--system", "Be brief")[0] != asked


def test_every_line_is_a_message_of_a_conversation(chat_file: Path) -> None:
    first, said = piped(chat_file, "not read", "--chat", "-p", "Hi")
    assert ONE_MESSAGE not in said and sum("of 128 tokens" in line for line in said) == 1
    both, said = piped(chat_file, "Hi\n\nSo\n", "--chat")
    assert sum("of 128 tokens" in line for line in said) == 2, "an empty line is none"
    assert both.startswith(first)
    block, said = piped(chat_file, '"""Hi\nSo"""\n/help\n', "--chat")
    assert sum("of 128 tokens" in line for line in said) == 2, "commands are for terminals"
    assert block.startswith(piped(chat_file, "Hi\nSo\n")[0])


def test_json_lines(chat_file: Path) -> None:
    text, _ = piped(chat_file, "Hi")
    printed, said = piped(chat_file, f"Hi\n{'word ' * 200}\nSo\n", "--chat", "--json")
    records = [json.loads(line) for line in printed.splitlines()]
    ends = [number for number, record in enumerate(records) if "finish" in record]
    assert len(ends) == 2 and records[ends[0]]["generated_tokens"] == 6
    assert "".join(record["text"] for record in records[: ends[0]]) == text.rstrip("\n")
    [refusal] = [record for record in records if "error" in record]
    assert refusal["error"].endswith("tokens with its template, the context holds 128")
    assert f"error: {refusal['error']}" in said
    assert "try:   a shorter message, or a larger --context" in said
    raw, _ = piped(chat_file, "", "--raw", "--json", "-p", "Hi")
    assert json.loads(raw.splitlines()[-1])["finish"] == "length"


def test_thinking_is_a_matter_of_the_template(chat_file: Path) -> None:
    plain, said = piped(chat_file, "Hi", "--no-thinking")
    assert "--no-thinking changes nothing: the chat template does not ask for it" in said
    assert plain == piped(chat_file, "Hi", "--chat-template-kwargs", '{"unknown": 1}')[0]


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("plain"), None)


def test_a_file_without_a_template_continues_texts(plain_file: Path) -> None:
    text, said = piped(plain_file, "", "-p", "Hi")
    assert text and said[-2] == "the answer was cut after 6 tokens, as -n says"
    assert refused("run", plain_file, "-p", "a", "--system", "b").endswith(
        "error: chat.gguf has no chat template, which --system needs\ntry:   without --system\n"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--raw", "--system", "S", "-p", "a"),
            "error: --system is for conversations, and --raw has none\ntry:   without --system\n",
        ),
        (("-p", " "), "error: the prompt is empty\ntry:   -p with some text\n"),
        (("--raw",), "error: the prompt is empty\ntry:   -p with some text\n"),
        (
            ("-p", "a\udcff"),
            "error: --prompt is not UTF-8\ntry:   text in UTF-8\n",
        ),
    ],
)
def test_what_is_refused_before_the_file_is_opened(
    chat_file: Path, flags: tuple[str, ...], said: str
) -> None:
    assert refused("run", chat_file, *flags) == said


def test_what_a_template_cannot_be_told(chat_file: Path) -> None:
    done = refused("run", chat_file, "-p", "a", "--chat-template-kwargs", "[1]", *SMALL)
    assert done.endswith(
        "error: --chat-template-kwargs is '[1]', not a JSON object\n"
        """try:   --chat-template-kwargs '{"enable_thinking": false}'\n"""
    )

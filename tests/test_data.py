"""Calibration data: what is read, how it is sampled, and what is refused in which words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tenp_edge.data import load_texts, load_tokenizer, make_domains, parse_data
from tenp_edge.errors import UserError

LONG = "\n".join(f"line {n}: the quick brown fox counts to {n * n}" for n in range(400))
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(checkpoint_of: Callable[[str], Path]) -> Any:
    return load_tokenizer(checkpoint_of("qwen3_moe"))


def written(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


# -- reading ---------------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path: Path, tokenizer: Any) -> None:
    lines = [{"text": "one"}, {"text": "two\nlines", "id": 2}]
    jsonl = "\n\n".join(map(json.dumps, lines)) + "\n"
    expected = ["one", "two\nlines"]
    assert load_texts(written(tmp_path / "a.jsonl", jsonl), tokenizer) == expected
    packed = written(tmp_path / "a.jsonl.gz", gzip.compress(jsonl.encode()))
    assert load_texts(packed, tokenizer) == expected
    assert load_texts(written(tmp_path / "a.txt", "naïve\n\ntext"), tokenizer) == ["naïve\n\ntext"]


def test_messages_go_through_the_chat_template(
    tmp_path: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    tokenizer = load_tokenizer(checkpoint_of("qwen3_moe"))
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "yes"}]}
    file = written(tmp_path / "chat.jsonl", json.dumps(record))
    assert refusal(lambda: load_texts(file, tokenizer)) == (
        f"{file}, line 1 has messages, but the model's tokenizer has no chat template\n"
        'try: {"text": "..."}'
    )
    tokenizer.chat_template = CHAT
    assert load_texts(file, tokenizer) == ["<user>hi<bot>yes"]


def test_refused_files(tmp_path: Path, tokenizer: Any) -> None:
    empty = written(tmp_path / "empty.txt", " \n")
    assert refusal(lambda: load_texts(empty, tokenizer)) == (
        f"{empty} holds no text\ntry: a file with text in it"
    )
    latin = written(tmp_path / "latin.txt", "caf\xe9 au lait".encode("latin-1"))
    assert refusal(lambda: load_texts(latin, tokenizer)) == (
        f"{latin} is not UTF-8 text (byte 0xe9: invalid continuation byte)\n"
        "try: iconv -f latin1 -t utf-8 FILE > NEW"
    )
    table = written(tmp_path / "table.csv", "a,b")
    assert refusal(lambda: load_texts(table, tokenizer)) == (
        f"{table} is not a kind of data file that is read\ntry: .txt, .jsonl, .jsonl.gz"
    )
    packed = written(tmp_path / "plain.jsonl.gz", "not gzip")
    assert refusal(lambda: load_texts(packed, tokenizer)) == (
        f"{packed} cannot be read: Not a gzipped file (b'no')"
    )


def test_refused_lines(tmp_path: Path, tokenizer: Any) -> None:
    neither = written(tmp_path / "a.jsonl", '{"text": "fine"}\n\n{"prompt": "no"}\n')
    assert refusal(lambda: load_texts(neither, tokenizer)) == (
        f'{neither}, line 3 has neither text nor messages\ntry: {{"text": "..."}}'
    )
    broken = written(tmp_path / "b.jsonl", '{"text": "fine"}\n{"text": \n')
    assert refusal(lambda: load_texts(broken, tokenizer)).startswith(
        f"{broken}, line 2 is not JSON: Expecting value"
    )


def test_data_arguments(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, "x") for name in ("a.jsonl", "b.txt"))
    assert parse_data([f"code={first}", str(second)]) == {"code": first, "b": second}
    assert refusal(lambda: parse_data([f"x={first}", f"x={second}"])) == (
        f"domain 'x' is named twice\ntry: --data x2={second}"
    )
    assert refusal(lambda: parse_data([f"a/b={first}"])) == (
        "'a/b' is not a domain name\ntry: letters, digits, '_', '-': --data code=FILE"
    )
    absent = tmp_path / "absent.txt"
    assert refusal(lambda: parse_data([f"x={absent}"])) == (
        f"data file {absent} does not exist\ntry: --data NAME=FILE"
    )


def test_tokenizers_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(lambda: load_tokenizer(tmp_path)) == (
        f"{tmp_path} has no tokenizer\ntry: copy tokenizer.json there"
    )
    written(tmp_path / "tokenizer.json", "{}")
    message = refusal(lambda: load_tokenizer(tmp_path))
    assert message.startswith(f"the tokenizer in {tmp_path} cannot be read: ")
    assert message.endswith("\ntry: download the model's tokenizer files again")


# -- sampling --------------------------------------------------------------------------------------


def test_samples_are_counted_by_domain_and_seeded(tokenizer: Any) -> None:
    texts = {"a": [LONG], "b": [LONG, LONG[::-1]]}
    first = make_domains(texts, tokenizer, 5, 32, seed=3)
    assert [(d.name, tuple(d.tokens.shape)) for d in first] == [("a", (5, 32)), ("b", (5, 32))]
    assert all((d.lengths == 32).all() for d in first)
    again, other = (make_domains(texts, tokenizer, 5, 32, seed=s) for s in (3, 4))
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x.tokens, y.tokens) for x, y in zip(first, other, strict=True))


def test_samples_do_not_repeat_text(tokenizer: Any) -> None:
    """With all of a text asked for, every line of it comes up once."""
    (found,) = make_domains({"a": [LONG]}, tokenizer, 10_000, 32, seed=0)
    text = "".join(
        tokenizer.decode(row[:length])
        for row, length in zip(found.tokens, found.lengths, strict=True)
    )
    assert text.count("fox") == 400


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_too_little_text_gives_fewer_samples_and_says_so(tokenizer: Any) -> None:
    notes = Notes()
    texts = {"short": ["only a few words here"]}
    (found,) = make_domains(texts, tokenizer, 4, 64, seed=0, progress=notes)  # type: ignore[arg-type]
    count = int(found.lengths.sum())
    assert found.tokens.shape == (1, 64) and count < 64
    assert not found.tokens[0, count:].any()
    assert notes.lines == [
        f"domain 'short' has text for {count} tokens: 1 sequences instead of 4 x 64 tokens"
    ]


def test_only_what_the_samples_need_is_tokenised(tokenizer: Any) -> None:
    seen = 0

    class Counting:
        eos_token_id, bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id

        def __call__(self, text: str, **options: Any) -> Any:
            nonlocal seen
            seen += len(text)
            return tokenizer(text, **options)

    make_domains({"a": [LONG * 50]}, Counting(), 4, 32, seed=0)
    assert 0 < seen < len(LONG)


def test_every_sample_begins_as_the_tokenizer_begins_a_text(tokenizer: Any) -> None:
    class WithBegin:
        eos_token_id, bos_token_id = 0, 7

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [7, *ids] if add_special_tokens else ids}

    (found,) = make_domains({"a": [LONG]}, WithBegin(), 4, 32, seed=0)
    assert found.tokens[:, 0].tolist() == [7] * 4
    assert (found.tokens[:, 1:] != 7).all()


def test_refused_samples(tokenizer: Any) -> None:
    assert refusal(lambda: make_domains({"a": [LONG]}, tokenizer, 0, 32, 0)) == (
        "--samples 0: every domain needs a sample\ntry: --samples 128"
    )
    assert refusal(lambda: make_domains({"a": [LONG]}, tokenizer, 4, 7, 0)) == (
        "--seq-len 7 is too short to calibrate on\ntry: --seq-len 512"
    )
    assert refusal(lambda: make_domains({"a": ["\n"]}, tokenizer, 4, 32, 0)) == (
        "domain 'a' holds no text\ntry: --data a=FILE with text"
    )

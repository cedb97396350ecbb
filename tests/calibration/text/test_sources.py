"""Where text comes from: the arguments of --data, and what each of them gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.data_cases import Notes, refusal, written

from tenp_edge.calibration.text import sources
from tenp_edge.calibration.text.builtin_text import DOMAINS, bundled_chars
from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.calibration.text.file_formats import ACCEPTED
from tenp_edge.calibration.text.sources import Source, parse_data, texts_of
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions
from tenp_edge.verbs.token_chunks import (
    calibration_domains,
    compress_domains,
    most_tokens,
    validation_domains,
)

LONG = "\n".join(f"line {n}: the quick brown fox counts to {n * n}" for n in range(400))
SMALL = CalibrationOptions(samples=2, seq_len=32)
SMALL_HELD = ValidationOptions(samples=1, seq_len=32)


@pytest.fixture(scope="module")
def tokenizer(checkpoint_of: Callable[[str], Path]) -> Any:
    return load_tokenizer(checkpoint_of("qwen3_moe"))


@pytest.fixture(scope="module")
def model(checkpoint_of: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(checkpoint_of("qwen3_moe"))


def texts(tokenizer: Any, *arguments: str, notes: Notes | None = None) -> dict[str, Any]:
    progress = notes or Notes()
    writer = ChatWriter(tokenizer, progress)
    return texts_of(parse_data(arguments), "heldout", writer, progress)


# -- arguments -------------------------------------------------------------------------------------


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = written(tmp_path / "a.jsonl", "x"), written(tmp_path / "my texts.b.txt", "x")
    assert parse_data(
        [f"code={first}", str(second), "hf:o/some.set", "x=hf:o/s:test", "y=stdlib"]
    ) == [
        Source("file", str(first), "code"),
        Source("file", str(second), "my-texts"),
        Source("hub", "hf:o/some.set", "some.set"),
        Source("hub", "hf:o/s:test", "x"),
        Source("set", "stdlib", "y"),
    ]
    assert parse_data([]) == [Source("set", "builtin", None)]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_data(["chat=~/a.jsonl"]) == [Source("file", str(first), "chat")]
    assert parse_data(["~/a.jsonl"]) == [Source("file", str(first), "a")]


def test_refused_arguments(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, "x") for name in ("a.jsonl", "b.txt"))
    assert refusal(lambda: parse_data([f"x={first}", f"x={second}"])) == (
        f"domain 'x' is named twice\ntry: --data x2={second}"
    )
    for order in ([f"chat={first}", "builtin"], ["builtin", f"chat={first}"]):
        assert refusal(lambda order=order: parse_data(order)) == (
            f"domain 'chat' is named twice\ntry: --data chat2={first}"
        )
    assert refusal(lambda: parse_data(["builtin", "stdlib"])) == (
        "domain 'code' is named twice\ntry: --data stdlib=stdlib"
    )
    assert len(parse_data(["builtin", "stdlib=stdlib"])) == 2
    assert refusal(lambda: parse_data([f"a/b={first}"])) == (
        "'a/b' is not a domain name\ntry: letters, digits, '_', '-': --data code=FILE"
    )
    for absent in ("absent.txt", "~nobody-of-that-name/x.txt", "a\0b.txt", "x" * 5000):
        path = tmp_path / absent
        assert refusal(lambda path=path: parse_data([f"x={path}"])) == (
            f"data file {path} does not exist\ntry: --data NAME=FILE, builtin or stdlib"
        )
    assert refusal(lambda: parse_data(["x=~nobody-of-that-name/x.txt"])) == (
        "data file ~nobody-of-that-name/x.txt does not exist\n"
        "try: --data NAME=FILE, builtin or stdlib"
    )
    assert refusal(lambda: parse_data([f"x={tmp_path}"])) == (
        f"data file {tmp_path} is a directory\ntry: --data NAME=FILE, builtin or stdlib"
    )
    assert refusal(lambda: parse_data(["x=/dev/null"])).startswith(
        "data file /dev/null is a device or a pipe\n"
    )
    assert refusal(lambda: parse_data(["x="])) == "--data x= names no file\ntry: --data x=FILE"
    table = written(tmp_path / "table.csv", "a,b")
    assert refusal(lambda: parse_data([str(table)])) == (
        f"{table} is not a kind of data file that is read\ntry: {ACCEPTED}"
    )
    for wrong in ("hf:", "hf:data", "hf:a/b/c/d", "hf:a/b:c:d", "hf:a b/c"):
        assert refusal(lambda wrong=wrong: parse_data([f"x={wrong}"])) == (
            f"'{wrong}' names no data set of the hub\ntry: --data NAME=hf:OWNER/DATASET[:SPLIT]"
        )


# -- texts -----------------------------------------------------------------------------------------


def test_files_give_texts_and_conversations(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "one"}, {"prompt": "two", "completion": "three"}]
    file = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    notes = Notes()
    found = texts(tokenizer, f"x={file}", f"y={file}", notes=notes)
    expected = {"": ["one", "User: two\n\nAssistant: three\n"]}
    assert found == {"x": expected, "y": expected}
    assert len(notes.lines) == 1


def test_files_without_text_and_large_files(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = written(tmp_path / "empty.txt", " \n")
    assert refusal(lambda: texts(tokenizer, str(empty))) == (
        f"{empty} holds no text\ntry: a file with text in it"
    )
    monkeypatch.setattr(sources, "MAX_TEXT_CHARS", 2**20)
    row = json.dumps({"text": "a" * 2**19}) + "\n"
    large, notes = written(tmp_path / "large.jsonl", row * 5), Notes()
    assert len(texts(tokenizer, str(large), notes=notes)["large"][""]) == 2
    assert notes.lines == [f"{large} is large: the first 1 MiB are used"]


def test_sets_are_domains_and_with_a_name_one_domain(tokenizer: Any) -> None:
    assert tuple(texts(tokenizer, "builtin")) == DOMAINS
    assert tuple(texts(tokenizer, "stdlib")) == ("code", "prose")
    both = texts(tokenizer, "python=stdlib", "all=builtin")
    assert set(both["python"]) == {"code/", "prose/"}
    assert {kind.split("/")[0] for kind in both["all"]} == set(DOMAINS)


def test_data_sets_of_the_hub(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads a directory of the same name as it reads the hub."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "talk"
    folder.mkdir(parents=True)
    written(folder / "train.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    notes = Notes()
    assert texts(tokenizer, "hf:owner/talk", notes=notes) == {"talk": {"": ["one", "two"]}}
    assert notes.lines == ["reading hf:owner/talk from the hub: at most 16 MiB of text"]
    assert refusal(lambda: texts(tokenizer, "x=hf:owner/talk:test")) == (
        "hf:owner/talk:test cannot be read: Bad split: test. Available splits: ['train']\n"
        "try: a file: --data NAME=FILE.jsonl"
    )


def test_the_hub_without_network_and_without_its_library(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(lambda: texts(tokenizer, "x=hf:owner/nowhere"))
    assert message.startswith("hf:owner/nowhere could not be fetched: ")
    assert message.endswith(
        "\ntry: on a machine with network, and a data set that is there; "
        "or a file: --data NAME=FILE.jsonl"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(lambda: texts(tokenizer, "x=hf:owner/nowhere")) == (
        "hf:owner/nowhere needs the library datasets, which is not installed\n"
        "try: pip install datasets"
    )


# -- domains ---------------------------------------------------------------------------------------


def names(domains: Any) -> list[tuple[str, int]]:
    return [(domain.name, len(domain.tokens)) for domain in domains]


def test_the_default_is_the_bundled_text_and_is_said_once(model: Checkpoint) -> None:
    notes = Notes()
    found = calibration_domains(model, SMALL, notes)
    assert names(found) == [(domain, 2) for domain in DOMAINS]
    held = validation_domains(model, SMALL_HELD, progress=notes)
    assert names(held) == [(domain, 1) for domain in DOMAINS]
    assert notes.lines == [
        "calibrating on the text in the package; your own prompts give a better model "
        "(--data name=file.jsonl)"
    ]


def test_bundled_text_that_runs_out_is_said_only_above_the_default(model: Checkpoint) -> None:
    notes = Notes()
    usual = CalibrationOptions(("builtin",), seq_len=512)
    calibration_domains(model, usual, notes)
    assert notes.lines == []
    validation_domains(model, ValidationOptions(samples=1000), progress=notes)
    assert len(notes.lines) == len(DOMAINS)


def test_compress_holds_out_by_source(model: Checkpoint, tmp_path: Path) -> None:
    """Of files the end of what is drawn, of sets their held-out part, of all a slice to choose."""
    file = written(tmp_path / "own.txt", LONG)
    mixed = CalibrationOptions((f"own={file}", "stdlib"), samples=4, seq_len=32)
    held = ValidationOptions(samples=2, seq_len=32)
    parts = compress_domains(model, mixed, held)
    assert [names(part) for part in parts] == [
        [("own", 5), ("code", 4), ("prose", 4)],
        [("own", 1), ("code", 2), ("prose", 2)],
        [("own", 4), ("code", 4), ("prose", 4)],
    ]
    chosen = ValidationOptions(("x=builtin",), samples=2, seq_len=32)
    both = CalibrationOptions((f"own={file}", "builtin"), samples=4, seq_len=32)
    parts = compress_domains(model, both, chosen)
    assert [name for name, _ in names(parts[1])] == ["x"]
    parts = compress_domains(model, SMALL, SMALL_HELD)
    assert [name for name, _ in names(parts[1])] == list(DOMAINS)


def test_one_chunk_cannot_be_both_calibrated_and_validated_on(
    model: Checkpoint, tmp_path: Path
) -> None:
    file = written(tmp_path / "own.txt", LONG[:300])
    options = CalibrationOptions((f"own={file}",), samples=4, seq_len=256)
    message = refusal(lambda: compress_domains(model, options, SMALL_HELD))
    tokens = re.search(r"one chunk of (\d+) tokens", message)
    assert tokens is not None
    shorter = int(tokens[1]) // 4
    assert message == (
        f"domain 'own' is one chunk of {tokens[1]} tokens: there is none to calibrate on beside "
        f"the one to validate on\ntry: --seq-len {shorter}, or --data own=FILE with more text"
    )
    parts = compress_domains(model, replace(options, seq_len=shorter), SMALL_HELD)
    assert [names(part) for part in parts[:2]] == [[("own", 3)], [("own", 1)]]


def test_most_tokens_of_every_source() -> None:
    def most(*data: str, samples: int = 2) -> int:
        return most_tokens(CalibrationOptions(data, samples=samples, seq_len=100))

    assert most() == most("builtin") == 4 * 200
    assert most("stdlib") == 2 * 200
    assert most("a.txt", "x=hf:o/d") == 2 * 200
    assert most("x=stdlib", "y=builtin", "z=a=b.txt") == 3 * 200
    held = ValidationOptions(samples=10**6, seq_len=100)
    assert most_tokens(held) == sum(bundled_chars("heldout", domain) for domain in DOMAINS)

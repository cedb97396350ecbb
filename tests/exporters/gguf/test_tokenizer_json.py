"""Broken tokenizer files end an export with one line that says what is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.byte_level_cases import byte_level
from support.tokenizer_cases import write_ernie

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields

Make = Callable[[str], Path]
AGAIN = "try: download the tokenizer files again"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("sound")
    byte_level(directory, "qwen2")
    found: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text())
    return found


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("model",), 1, "model"),
        (("model", "vocab"), [], "vocab"),
        (("model", "vocab", "a"), -1, "vocab"),
        (("model", "vocab", "a"), 2**24, "vocab"),
        (("model", "vocab", "\ud800"), 5, "vocab"),
        (("model", "merges"), None, "merges"),
        (("model", "merges", 0), "ab", "merges"),
        (("model", "merges", 0), ["a", "b", "c"], "merges"),
        (("added_tokens",), {"a": 1}, "added_tokens"),
        (("added_tokens", 0, "id"), 10**12, "added_tokens"),
        (("added_tokens", 0, "content"), None, "added_tokens"),
        (("added_tokens", 0, "special"), 1, "added_tokens"),
    ],
)
def test_broken_parts_are_named(
    place: tuple[Any, ...],
    value: Any,
    what: str,
    sound: dict[str, Any],
    tmp_path: Path,
    checkpoint_of: Make,
) -> None:
    raw = copy.deepcopy(sound)
    holder = raw
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(raw))
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == f"{file} is broken: {what}\n{AGAIN}"


def test_steps_that_tokenizers_does_not_read(
    sound: dict[str, Any], tmp_path: Path, checkpoint_of: Make
) -> None:
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        (tmp_path / "tokenizer.json").write_text(json.dumps(sound | {name: {"type": "Nonsense"}}))
        with pytest.raises(UserError) as caught:
            tokenizer_fields(tmp_path, config)
        message, hint = str(caught.value).splitlines()
        assert message.startswith("tokenizer.json cannot be read: ") and hint == AGAIN


@pytest.mark.parametrize("stated", [[1], {"x": {"content": "a"}}, {"1": 2}, {"1": {}}])
def test_added_tokens_of_a_lone_model(stated: Any, tmp_path: Path, checkpoint_of: Make) -> None:
    write_ernie(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"added_tokens_decoder": stated}))
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, Checkpoint(checkpoint_of("mixtral")).config)
    assert str(caught.value) == f"{settings} is broken: added_tokens_decoder\n{AGAIN}"

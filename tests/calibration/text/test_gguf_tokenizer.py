"""Text as a GGUF's own tokenizer reads it: as the tokenizer that the file was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.gguf_sources import rewritten, write_gguf

from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.domains import load_tokenizer, make_domains
from tenp_edge.calibration.text.records import Chat
from tenp_edge.errors import UserError

TEXT = "def f(x):\n    return x ** 2  # naïve <|endoftext|> 12345\n\n  Ünïcode 日本語"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | length }}{% endif %}"
)


@pytest.fixture
def file(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return write_gguf(checkpoint_of("qwen3_moe"), tmp_path / "model.gguf")


def test_it_is_the_tokenizer_that_the_file_was_made_of(
    file: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    theirs, ours = load_tokenizer(checkpoint_of("qwen3_moe")), load_tokenizer(file)
    ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ours(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert ours.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    assert ours.eos_token_id == theirs.eos_token_id
    texts = {"some": [TEXT * 40]}
    (drawn,), (expected,) = (make_domains(texts, t, 4, 32, 0) for t in (ours, theirs))
    assert drawn.tokens.tolist() == expected.tokens.tolist()


def test_conversations_go_through_the_files_template(file: Path) -> None:
    rewritten(file, add={"tokenizer.chat_template": TEMPLATE})
    chat = Chat(({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}))
    assert ChatWriter(load_tokenizer(file)).text("here", chat) == (
        "[user] Hello<|endoftext|>\n[assistant] Hi.<|endoftext|>\n"
    )
    tools = Chat(chat.messages, ({"type": "function"},))
    assert ChatWriter(load_tokenizer(file)).text("here", tools).endswith("tools: 1")


def test_a_template_that_refuses(file: Path) -> None:
    rewritten(file, add={"tokenizer.chat_template": "{{ raise_exception('no, thanks') }}"})
    chat = Chat(({"role": "user", "content": "Hello"},))
    with pytest.raises(UserError, match="here: the chat template refuses it: no, thanks"):
        ChatWriter(load_tokenizer(file)).text("here", chat)


def test_a_file_without_a_tokenizer(file: Path) -> None:
    rewritten(file, drop=("tokenizer.",))
    with pytest.raises(UserError, match=r"the vocabulary of model.gguf is broken"):
        load_tokenizer(file)

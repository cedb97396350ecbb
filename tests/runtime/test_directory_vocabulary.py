"""Tokenizers of model directories, read without transformers: the same ids, bytes and templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tokenizer_cases import NASTY, sentencepiece_json, train_sentencepiece
from transformers import AutoTokenizer

from tenp_edge.errors import UserError
from tenp_edge.runtime.directory_vocabulary import open_vocabulary

CheckpointOf = Callable[[str], Path]


def change(file: Path, **fields: object) -> None:
    raw = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(raw | fields))


def test_byte_level_ids_and_bytes(checkpoint_of: CheckpointOf) -> None:
    directory = checkpoint_of("olmoe")
    vocabulary = open_vocabulary(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text in (NASTY, "def f(x):\n\treturn x", "<|endoftext|>", " a  b "):
        tokens = vocabulary.tokenize(text)
        assert tokens == tokenizer(text)["input_ids"]
        assert vocabulary.detokenize(tokens) == text
    assert (vocabulary.bos, vocabulary.eos) == (0, 0) and vocabulary.ends(0)
    assert vocabulary.size == len(tokenizer)


def test_special_tokens_as_text_and_unprinted(checkpoint_of: CheckpointOf) -> None:
    vocabulary = open_vocabulary(checkpoint_of("olmoe"))
    assert vocabulary.tokenize("<|endoftext|>") == [0]
    spelled = vocabulary.tokenize("<|endoftext|>", parse_special=False)
    assert len(spelled) > 1 and vocabulary.detokenize(spelled) == "<|endoftext|>"
    assert vocabulary.piece(0) == b"" and vocabulary.piece(0, special=True) == b"<|endoftext|>"
    assert vocabulary.piece(10**6) == b"", "the output matrix may have more rows than tokens"


def test_a_lone_sentencepiece_model_and_its_json(tmp_path: Path) -> None:
    processor = train_sentencepiece(tmp_path / "spm")
    sentencepiece_json(processor, tmp_path / "json")
    alone, converted = (open_vocabulary(tmp_path / name) for name in ("spm", "json"))
    tokens = alone.tokenize(NASTY, add_special=False)
    assert tokens == processor.encode(NASTY)
    for vocabulary in (alone, converted):
        assert vocabulary.detokenize(tokens) == f" {NASTY}", "the space that it puts in front"
        assert (vocabulary.bos, vocabulary.eos) == (1, 2)
        assert vocabulary.size == processor.get_piece_size()
        assert vocabulary.piece(2) == b"" and vocabulary.piece(2, special=True) == b"</s>"
    assert alone.tokenize("a") == [1, *processor.encode("a")]
    assert alone.tokenize("a</s>", add_special=False) == [*processor.encode("a"), 2]
    spelled = alone.tokenize("a</s>", add_special=False, parse_special=False)
    assert spelled == processor.encode("a</s>") and spelled[-1] != 2


@pytest.mark.parametrize("stated", [[1], {"x": {"content": "a"}}, {"1": 2}, {"1": {}}])
def test_broken_added_tokens_of_a_lone_model(stated: object, tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    change(settings, added_tokens_decoder=stated)
    with pytest.raises(UserError) as caught:
        open_vocabulary(tmp_path)
    assert str(caught.value) == (
        f"{settings} is broken: added_tokens_decoder\n"
        "try: export it again, or copy the model's tokenizer files there"
    )


def test_where_the_template_and_the_end_come_from(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    tokenizer = checkpoint_of("olmoe") / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    assert open_vocabulary(tmp_path).chat_template is None
    assert open_vocabulary(tmp_path).eos is None
    settings = tmp_path / "tokenizer_config.json"
    change(settings, chat_template=[{"name": "tool", "template": "T"}], eos_token="<|endoftext|>")
    assert open_vocabulary(tmp_path).chat_template is None
    change(settings, chat_template=[{"name": "default", "template": "A"}])
    assert open_vocabulary(tmp_path).chat_template == "A"
    change(settings, chat_template="B")
    assert open_vocabulary(tmp_path).chat_template == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    change(tmp_path / "generation_config.json", eos_token_id=[7, 9])
    change(tmp_path / "config.json", eos_token_id=11, bos_token_id=5)
    vocabulary = open_vocabulary(tmp_path)
    assert vocabulary.chat_template == "C"
    assert (vocabulary.bos, vocabulary.eos) == (5, 0)
    assert [token for token in range(12) if vocabulary.ends(token)] == [0, 7, 9, 11]
    (tmp_path / "generation_config.json").unlink()
    change(tmp_path / "config.json", text_config={"eos_token_id": 3, "bos_token_id": 4})
    assert open_vocabulary(tmp_path).bos == 5 and open_vocabulary(tmp_path).ends(11)
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 3, "bos_token_id": 4}}')
    assert open_vocabulary(tmp_path).bos == 4 and open_vocabulary(tmp_path).ends(3)


def test_directories_without_a_usable_tokenizer(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            open_vocabulary(tmp_path)
        return caught.value.message

    assert (
        refused()
        == f"{tmp_path} has no tokenizer: no tokenizer.json, tokenizer.model or tiktoken.model"
    )
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    assert refused() == f"{tmp_path / 'tokenizer.model'} is not a sentencepiece model"
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    assert refused().startswith(f"{tmp_path / 'tokenizer.json'} cannot be read: ")
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    assert refused() == f"{tmp_path / 'tokenizer_config.json'} is not a JSON object"

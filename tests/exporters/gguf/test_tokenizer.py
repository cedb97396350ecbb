"""The tokenizer in our file: special tokens, chat template, sentencepiece, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.byte_level_cases import byte_level, vocabulary_file
from support.tokenizer_cases import (
    HARD,
    NASTY,
    sentencepiece_json,
    train_sentencepiece,
    write_ernie,
    write_gemma,
)
from tokenizers import Tokenizer

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields
from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.llamacpp.model import LlamaCppModel

Make = Callable[[str], Path]


def test_merges_in_both_spellings_are_the_same_field(tmp_path: Path, checkpoint_of: Make) -> None:
    config = replace(Checkpoint(checkpoint_of("olmoe")).config, vocab_size=700)
    byte_level(tmp_path / "new", "gpt-2")
    byte_level(tmp_path / "old", "gpt-2", old_merges=True)
    assert tokenizer_fields(tmp_path / "new", config) == tokenizer_fields(tmp_path / "old", config)


def test_bos_is_added_as_the_setting_says(tmp_path: Path, checkpoint_of: Make) -> None:
    tokenizer = byte_level(tmp_path, "deepseek-v3")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    file = vocabulary_file(tmp_path, checkpoint_of("deepseek_v3"), 700)
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.tokenize("x y") == [0, *tokenizer.encode("x y").ids]
        assert model.tokenize("x y", add_special=False) == tokenizer.encode("x y").ids


def test_template_of_the_post_processor_adds_bos(tmp_path: Path, checkpoint_of: Make) -> None:
    byte_level(tmp_path, "llama-bpe")
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    single = [
        {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    begin = {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": begin,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 700)
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.tokenize("x y") == tokenizer.encode("x y").ids
        assert model.tokenize("x y")[0] == 0


def test_sentencepiece_model_and_its_json(tmp_path: Path, checkpoint_of: Make) -> None:
    processor = train_sentencepiece(tmp_path / "spm")
    sentencepiece_json(processor, tmp_path / "json")
    hf = Tokenizer.from_file(str(tmp_path / "json" / "tokenizer.json"))
    size = processor.get_piece_size() + 5
    for name in ("spm", "json"):
        file = vocabulary_file(tmp_path / name, checkpoint_of("mixtral"), size)
        with LlamaCppModel(file, vocab_only=True) as model:
            for line in (NASTY, *NASTY.splitlines(), "  two", ""):
                wanted = processor.encode(line)
                assert model.tokenize(line, add_special=False) == wanted
                if line:
                    assert model.tokenize(line) == [1, *wanted]
                    assert hf.encode(line).ids == wanted


def test_ernie(tmp_path: Path, checkpoint_of: Make) -> None:
    """The lone model, and tokenizer.json as transformers makes it from that: the same tokens."""
    processor = write_ernie(tmp_path / "model")
    transformers = load_tokenizer(tmp_path / "model")
    transformers.save_pretrained(tmp_path / "json")
    size = processor.get_piece_size() + 1
    for name in ("model", "json"):
        directory = open_vocabulary(tmp_path / name)
        file = vocabulary_file(tmp_path / name, checkpoint_of("mixtral"), size)
        with LlamaCppModel(file, vocab_only=True) as model:
            for text in (HARD, *HARD.splitlines(), "a <|im_start|> b"):
                wanted = processor.encode(text)
                assert model.tokenize(text) == directory.tokenize(text) == wanted, text
                assert transformers(text)["input_ids"] == wanted
            named = "<|begin_of_sentence|>x<|tool|>y</s>"
            wanted = [3, *processor.encode("x"), size - 1, *processor.encode("y"), 2]
            assert model.tokenize(named) == directory.tokenize(named) == wanted
            assert model.vocabulary.ends(2) and model.vocabulary.piece(size - 1) == b""


def test_gemma(tmp_path: Path, checkpoint_of: Make) -> None:
    """Merges in their order, spaces as low lines, line ends apart, BOS in front in any case."""
    hf, directory = write_gemma(tmp_path), open_vocabulary(tmp_path)
    transformers = load_tokenizer(tmp_path)
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), hf.get_vocab_size() + 5)
    with LlamaCppModel(file, vocab_only=True) as model:
        for text in (HARD, *HARD.splitlines(), "a\n\n\n\nb \n\n  c", "<|turn>user\nhi<turn|>\n"):
            wanted = hf.encode(text, add_special_tokens=False).ids
            assert model.tokenize(text, add_special=False) == wanted, text
            assert model.tokenize(text) == directory.tokenize(text) == [2, *wanted]
            assert transformers(text)["input_ids"] == [2, *wanted]
            assert directory.tokenize(text, add_special=False) == wanted
            assert model.detokenize(wanted) == directory.detokenize(wanted) == text
        vocabulary = model.vocabulary
        assert (vocabulary.bos, vocabulary.eos) == (2, 1)
        assert vocabulary.ends(1) and vocabulary.ends(5) and not vocabulary.ends(4)
        assert vocabulary.piece(4) == b"" and vocabulary.piece(6) == b"<|channel>"
        assert vocabulary.chat_template == "{{ bos_token }}{{ messages }}"


def test_pieces_without_bytes_are_refused(tmp_path: Path, checkpoint_of: Make) -> None:
    processor = train_sentencepiece(tmp_path / "spm", byte_fallback=False)
    with pytest.raises(UserError) as caught:
        vocabulary_file(tmp_path / "spm", checkpoint_of("mixtral"), processor.get_piece_size())
    assert str(caught.value) == (
        "the tokenizer has no piece for 256 of 256 bytes, which llama.cpp needs\n"
        "try: a tokenizer.model with byte fallback"
    )


def test_chat_template_and_special_ids(tmp_path: Path, checkpoint_of: Make) -> None:
    byte_level(tmp_path, "qwen2")
    config = replace(Checkpoint(checkpoint_of("qwen3_moe")).config, vocab_size=700)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    fields = dict(tokenizer_fields(tmp_path, config))
    assert fields["tokenizer.chat_template"].endswith(b"{{ messages }}")
    assert fields["tokenizer.ggml.bos_token_id"][4:] == (0).to_bytes(4, "little")
    assert fields["tokenizer.ggml.eos_token_id"][4:] == (1).to_bytes(4, "little")
    assert "tokenizer.ggml.padding_token_id" not in fields


def test_broken_chat_templates(tmp_path: Path, checkpoint_of: Make) -> None:
    byte_level(tmp_path, "qwen2")
    config = replace(Checkpoint(checkpoint_of("qwen3_moe")).config, vocab_size=700)
    settings = tmp_path / "tokenizer_config.json"
    for stated in ([1], [{}], [{"name": "default"}]):
        settings.write_text(json.dumps({"chat_template": stated}))
        assert "tokenizer.chat_template" not in dict(tokenizer_fields(tmp_path, config))
    template = tmp_path / "chat_template.jinja"
    template.write_bytes(b"\xff")
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == (
        f"{template} is not UTF-8\ntry: download the tokenizer files again"
    )


def test_all_ends_of_a_generation(tmp_path: Path, checkpoint_of: Make) -> None:
    """GLM's end with the next user's turn, which llama.cpp does not know by the text."""
    byte_level(tmp_path, "glm4")
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    count = len(raw["model"]["vocab"]) + 1
    names = ["<|user|>", "<|observation|>", "<|endoftext|>"]
    raw["added_tokens"] += [
        raw["added_tokens"][0] | {"id": count + number, "content": name}
        for number, name in enumerate(names)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    ends = {"eos_token_id": [1, count + 2, count, count + 1]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    config = replace(Checkpoint(checkpoint_of("qwen3_moe")).config, vocab_size=700)
    fields = dict(tokenizer_fields(tmp_path, config))
    numbers = {
        key: int.from_bytes(fields[f"tokenizer.ggml.{key}_token_id"][4:], "little")
        for key in ("eos", "eot", "eom")
    }
    assert numbers == {"eos": 1, "eot": count, "eom": count + 1}
    assert "tokenizer.ggml.bos_token_id" not in fields
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 700)
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.vocabulary.bos is None
        ended = [token for token in range(700) if model.vocabulary.ends(token)]
        assert ended == [1, count, count + 1, count + 2]


def test_missing_and_oversized_tokenizers_are_refused(tmp_path: Path, checkpoint_of: Make) -> None:
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer.json, tokenizer.model or tiktoken.model for a GGUF\n"
        "try: download the tokenizer files of the model"
    )
    tokenizer = byte_level(tmp_path, "gpt-2")
    count = tokenizer.get_vocab_size()
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == (
        f"the tokenizer has {count} tokens, the model's vocab_size is 384\n"
        "try: check that the tokenizer belongs to this model"
    )

"""llama.cpp tokenises from our file as the model's own tokenizer does, for every known style."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tokenizer_cases import NASTY, sentencepiece_json, train_sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.fields import header
from tenp_edge.exporters.gguf.metadata import Recipe, model_fields
from tenp_edge.exporters.gguf.pretokenizers import detect
from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields
from tenp_edge.runtime.llamacpp.model import LlamaCppModel

# Patterns as the published models' tokenizer.json files spell them.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
DEEPSEEK_LLM = (
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ"
    "-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
)


def _splits(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


def _bytes(use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


STYLES: dict[str, tuple[Any, bool, bool]] = {
    # llama.cpp's name -> pre-tokenizer, NFC, ignore_merges
    "qwen2": (pre_tokenizers.Sequence([*_splits(QWEN2), _bytes()]), True, False),
    "gpt-2": (_bytes(use_regex=True), False, False),
    "olmo": (_bytes(use_regex=True), True, False),
    "llama-bpe": (pre_tokenizers.Sequence([*_splits(LLAMA3), _bytes()]), False, True),
    "smaug-bpe": (pre_tokenizers.Sequence([*_splits(LLAMA3), _bytes()]), False, False),
    "deepseek-llm": (
        pre_tokenizers.Sequence(
            [*_splits(*DEEPSEEK_LLM), pre_tokenizers.Digits(individual_digits=True), _bytes()]
        ),
        False,
        False,
    ),
    "deepseek-v3": (
        pre_tokenizers.Sequence(
            [*_splits(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK_V3), _bytes()]
        ),
        False,
        False,
    ),
    "starcoder": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)]
        ),
        False,
        False,
    ),
}


def byte_level(directory: Path, style: str, *, old_merges: bool = False) -> Tokenizer:
    """A BPE tokenizer of ``style`` trained on the sample itself, saved as tokenizer.json."""
    splitter, nfc, ignore_merges = STYLES[style]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([NASTY] * 3 + [__doc__ or ""], trainer)
    tokenizer.add_tokens(["<tool_call>"])
    if style == "olmo":
        # GPT-NeoX's vocabulary adds runs of spaces.
        tokenizer.add_tokens([" " * count for count in range(12, 1, -1)])
    directory.mkdir(exist_ok=True)
    raw = json.loads(tokenizer.to_str())
    if old_merges:
        raw["model"]["merges"] = [" ".join(merge) for merge in raw["model"]["merges"]]
    (directory / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    settings = {"eos_token": "<|end|>", "bos_token": {"content": "<|begin|>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def vocabulary_file(directory: Path, checkpoint: Path, size: int) -> Path:
    """A GGUF file that holds the tokenizer of ``directory`` and no tensors."""
    config = replace(Checkpoint(checkpoint).config, vocab_size=size)
    fields = model_fields(config, "merged", "F32", Recipe()) + list(
        tokenizer_fields(directory, config)
    )
    file = directory / "vocab.gguf"
    file.write_bytes(header(fields, []))
    return file


Make = Callable[[str], Path]


@pytest.mark.parametrize("style", STYLES)
def test_byte_level_styles(style: str, tmp_path: Path, checkpoint_of: Make) -> None:
    tokenizer = byte_level(tmp_path, style)
    assert detect(json.loads((tmp_path / "tokenizer.json").read_text())) == style
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 700)
    text = f"{NASTY}<|end|>{NASTY}<tool_call> x"
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.tokenize(text) == tokenizer.encode(text).ids
        for line in NASTY.splitlines():
            assert model.tokenize(line) == tokenizer.encode(line).ids
        assert model.detokenize(model.tokenize(NASTY)) == NASTY
        assert model.vocab_size == 700


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


def test_unknown_splitter_is_refused(tmp_path: Path, checkpoint_of: Make) -> None:
    byte_level(tmp_path, "gpt-2")
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == (
        "tokenizer.json splits text in a way that llama.cpp is not known to have: Whitespace()\n"
        "try: the tokenizer of the original model; known: deepseek-llm, deepseek-v3, gpt-2, "
        "llama-bpe, olmo, qwen2, smaug-bpe, starcoder, sentencepiece"
    )


def test_missing_and_oversized_tokenizers_are_refused(tmp_path: Path, checkpoint_of: Make) -> None:
    config = Checkpoint(checkpoint_of("qwen3_moe")).config
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tmp_path, config)
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer.json or tokenizer.model, which a GGUF file needs\n"
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

"""tiktoken vocabularies: the tokens that tiktoken gives, without running the checkpoint's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.byte_level_cases import spaced_before_capitals, vocabulary_file, without_marks
from support.tiktoken_cases import PATTERN, encode, write_tiktoken
from support.tokenizer_cases import HARD

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.errors import UserError
from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.tiktoken import tokenizer_json

Make = Callable[[str], Path]


def test_our_runtime_and_transformers_give_its_tokens(tmp_path: Path) -> None:
    ranks = write_tiktoken(tmp_path, HARD)
    ours, theirs = open_vocabulary(tmp_path), load_tokenizer(tmp_path)
    for text in (HARD, *HARD.splitlines(), "unseen words: ЖЩЪ getWordOf(人々)"):
        wanted = encode(ranks, text)
        assert ours.tokenize(text) == wanted
        assert theirs(text)["input_ids"] == wanted
        assert ours.detokenize(wanted) == text
    first = len(ranks)
    named = f"a[EOS]b<|im_end|><|tool_calls_section_begin|><|reserved_token_{first + 3}|>"
    wanted = [ranks[b"a"], first + 1, ranks[b"b"], first + 2, first + 4, first + 3]
    assert ours.tokenize(named) == theirs(named)["input_ids"] == wanted
    assert (ours.bos, ours.eos, ours.size) == (first, first + 1, first + 5)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (first, first + 1)
    assert ours.piece(first + 4) == b"<|tool_calls_section_begin|>", "not special: it stays"
    assert ours.piece(first + 2) == b""
    message = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(message, tokenize=False) == "hi"
    assert ours.chat_template == "{{ messages[0]['content'] }}"


def test_llama_cpp_gives_its_tokens(tmp_path: Path, checkpoint_of: Make) -> None:
    text = spaced_before_capitals(without_marks(HARD), ascii_too=True)
    text = text.translate(dict.fromkeys(map(ord, "々〇⺀")))
    ranks = write_tiktoken(tmp_path, text)
    file = vocabulary_file(tmp_path, checkpoint_of("deepseek_v3"), len(ranks) + 20)
    with LlamaCppModel(file, vocab_only=True) as model:
        for line in (text, *text.splitlines()):
            assert model.tokenize(line) == encode(ranks, line)
        assert model.tokenize("[BOS][EOS]") == [len(ranks), len(ranks) + 1]
        assert model.detokenize(model.tokenize(text)) == text
        assert model.vocabulary.ends(len(ranks) + 1) and model.vocabulary.ends(len(ranks) + 2)


def test_the_pattern_is_read_out_of_the_code(tmp_path: Path) -> None:
    write_tiktoken(tmp_path, "some words")
    splits = tokenizer_json(tmp_path)["pre_tokenizer"]["pretokenizers"]
    assert splits[0]["pattern"]["Regex"] == PATTERN
    code = tmp_path / "tokenization_moonshot.py"
    code.write_text("class T:\n    pat_str = r'\\s+|\\S+'\n")
    splits = tokenizer_json(tmp_path)["pre_tokenizer"]["pretokenizers"]
    assert splits[0]["pattern"]["Regex"] == r"\s+|\S+"


def test_broken_vocabularies_are_refused(tmp_path: Path) -> None:
    ranks = write_tiktoken(tmp_path, "some words")
    model, code = tmp_path / "tiktoken.model", tmp_path / "tokenization_moonshot.py"
    settings = tmp_path / "tokenizer_config.json"

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            tokenizer_json(tmp_path)
        return str(caught.value)

    no_pattern = (
        f"{model} does not say how text is split: the tokenizer's tokenization_*.py does, which is "
        "missing or has no pat_str\n"
        "try: copy the model's tokenization_*.py there; it is read, not run"
    )
    for broken in ("pat_str = ", "pat_str = f(1)", "pat_str = 1", "\0", "(" * 9999, "pat = 'a'"):
        code.write_text(broken)
        assert refused() == no_pattern
    code.unlink()
    assert refused() == no_pattern
    for text in ("x" * 1000, "!!!! 1", "IQ== x", "IQ==\n"):
        model.write_text(text)
        assert refused() == f"{model} is not a tiktoken vocabulary\ntry: download it again"
    for text in ("IQ== 1", "", "IQ== 0\nIg== 2"):
        model.write_text(text)
        assert refused() == (
            f"{model} is not a tiktoken vocabulary: ranks are missing\ntry: download it again"
        )
    write_tiktoken(tmp_path, "some words")
    for stated in ([1], {"x": {"content": "a"}}, {str(len(ranks)): {}}, {"1": 2}):
        settings.write_text(json.dumps({"added_tokens_decoder": stated}))
        assert refused() == (
            "tokenizer_config.json: added_tokens_decoder is broken\ntry: download it again"
        )
    settings.write_text(json.dumps({"added_tokens_decoder": {str(2**40): {"content": "a"}}}))
    assert refused() == (
        f"tokenizer_config.json: added token {2**40} is out of range\ntry: download it again"
    )

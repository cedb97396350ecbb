"""Sampling by closed form, and generation in both runtimes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.runtime_cases import CheckpointOf, export_ragged

from tenp_edge.errors import UserError
from tenp_edge.runtime.bench import bench
from tenp_edge.runtime.chat_prompt import chat_prompt
from tenp_edge.runtime.generation import Generation, generate, run_text
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.sampling import Sampler, SamplingOptions, distribution

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
GREEDY = SamplingOptions(temperature=0.0)
# Token 0 .. 4 with shares 0.1, 0.4, 0.2, 0.25, 0.05.
SHARES = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
LOGITS = np.log(SHARES).astype(np.float32)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("changes", "tokens", "shares"),
    [
        ({}, [1, 3, 2, 0, 4], [0.4, 0.25, 0.2, 0.1, 0.05]),
        ({"top_k": 2}, [1, 3], [0.4 / 0.65, 0.25 / 0.65]),
        ({"top_k": 99}, [1, 3, 2, 0, 4], [0.4, 0.25, 0.2, 0.1, 0.05]),
        # 0.4 + 0.25 = 0.65 is not enough for 0.7, with 0.2 it is.
        ({"top_p": 0.7}, [1, 3, 2], [0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85]),
        ({"top_p": 0.01}, [1], [1.0]),
        # At least half of the best one's 0.4.
        ({"min_p": 0.45}, [1, 3, 2], [0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85]),
        # top-p counts within the top-k.
        ({"top_k": 2, "top_p": 0.6}, [1], [1.0]),
        # Temperature comes last: it changes shares, not who may be drawn.
        ({"temperature": 0.5, "top_k": 2}, [1, 3], [0.16 / 0.2225, 0.0625 / 0.2225]),
        ({"temperature": 0.0}, [1], [1.0]),
    ],
)
def test_distribution(changes: dict[str, float], tokens: list[int], shares: list[float]) -> None:
    found, probabilities = distribution(LOGITS, SamplingOptions(**OFF | changes))
    assert found.tolist() == tokens
    assert probabilities == pytest.approx(shares, abs=1e-6)


def test_repeat_penalty_divides_positive_and_multiplies_negative_scores() -> None:
    logits = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    options = SamplingOptions(**OFF | {"repeat_penalty": 2.0})
    found, shares = distribution(logits, options, recent=[0, 1, 1])
    wanted = np.exp([1.0, 1.0, -4.0]) / np.exp([1.0, 1.0, -4.0]).sum()
    assert found.tolist() == [0, 2, 1]
    assert shares == pytest.approx(wanted)
    sampler = Sampler(SamplingOptions(temperature=0.0, repeat_penalty=4.0, repeat_last_n=1), [0])
    assert sampler.choose(logits) == 2
    sampler.accept(2)  # Only the last token counts: 0 is free again.
    assert sampler.choose(logits) == 0


def test_seeds() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(**OFF, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(2000)]

    assert drawn(7) == drawn(7) != drawn(8)
    shares = np.bincount(drawn(3), minlength=5) / 2000
    assert np.abs(shares - SHARES).max() < 0.04


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": -1.0}, "--temperature is -1.0\ntry: --temperature of 0 or more"),
        ({"top_k": -1}, "--top-k is -1\ntry: --top-k of 0 or more"),
        ({"top_p": -0.5}, "--top-p is -0.5\ntry: --top-p of 0 to 1"),
        ({"min_p": 1.5}, "--min-p is 1.5\ntry: --min-p of 0 to 1"),
        ({"repeat_penalty": 0.0}, "--repeat-penalty is 0.0\ntry: --repeat-penalty of above 0"),
        ({"repeat_last_n": -1}, "--repeat-last-n is -1\ntry: --repeat-last-n of 0 or more"),
    ],
)
def test_meaningless_options(changes: dict[str, float], text: str) -> None:
    with pytest.raises(UserError) as caught:
        Sampler(SamplingOptions(**changes))
    assert str(caught.value) == text


# -- generation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf
) -> tuple[Path, Path]:
    """The same model for our runtime and for llama.cpp, with a chat template."""
    directory = tiny.make(tmp_path_factory.mktemp("chat") / "model", "mixtral")
    settings = directory / "tokenizer_config.json"
    raw = json.loads(settings.read_text()) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(raw))
    made = directory / "per-expert.gguf", directory / "padded.gguf"
    for file in made:
        export_ragged(directory, file, "F32", file.stem)
    return made


OPTIONS = RunOptions(context=64, threads=1, kv_type="F32", flash_attention=False)


def text_of(pieces: Iterable[str]) -> str:
    return "".join(pieces)


def test_both_runtimes_write_the_same(files: tuple[Path, Path]) -> None:
    found = []
    for file in files:
        with open_model(file, OPTIONS) as session:
            greedy = text_of(run_text(session, "def f(x):", GREEDY, 30))
            drawn = text_of(run_text(session, "def f(x):", SamplingOptions(seed=3), 30))
            found.append((greedy, drawn))
    assert found[0] == found[1]
    assert len(found[0][0]) > 5 and found[0][0] != found[0][1]


def test_pieces_limits_and_incomplete_characters(files: tuple[Path, Path]) -> None:
    with open_model(files[0], OPTIONS) as session:
        prompt = session.tokenize("import os")
        pieces = list(generate(session, prompt, SamplingOptions(seed=1), 25))
        assert [piece.finish for piece in pieces] == [None] * 24 + ["length"]
        raw = b"".join(session.vocabulary.piece(piece.token) for piece in pieces)
        assert text_of(piece.text for piece in pieces) == raw.decode(errors="replace")
        assert any(not piece.text for piece in pieces), "no character was held back"
        # The context holds 64: the last token that is drawn needs no slot.
        everything = list(generate(session, prompt, GREEDY))
        assert len(prompt) + len(everything) == 65 and everything[-1].finish == "length"
        assert session.position == 64
        assert [p.token for p in generate(session, prompt, GREEDY, 4)] == [
            piece.token for piece in everything[:4]
        ]


def test_a_generation_needs_no_model(files: tuple[Path, Path]) -> None:
    """Two answers in turn, from logits that somebody else computed."""
    with open_model(files[0], OPTIONS) as session:
        vocabulary, end = session.vocabulary, session.vocabulary.eos
        assert end is not None
        letter = next(t for t in range(session.vocab_size) if vocabulary.piece(t) == b"a")
        sure_of = np.eye(session.vocab_size, dtype=np.float32)
        first, second = (Generation(vocabulary, [5], GREEDY, limit) for limit in (2, 9))
        assert (first.take(sure_of[letter]).text, second.take(sure_of[letter]).text) == ("a", "a")
        assert not first.finished and not second.finished
        ends = first.take(sure_of[letter]).finish, second.take(sure_of[end]).finish
    assert ends == ("length", "stop")
    assert first.finished and second.finished and first.count == second.count == 2


def test_generation_stops_at_an_end_token(files: tuple[Path, Path]) -> None:
    with open_model(files[0], OPTIONS) as session:
        end = session.vocabulary.eos
        assert end is not None and session.vocabulary.ends(end)

        class Ending(type(session)):  # type: ignore[misc]
            """The same model, certain of its third token."""

            def decode(self, token: int) -> np.ndarray:
                logits = super().decode(token)
                if self.position == 4:
                    logits[end] = 1e4
                return logits

        session.__class__ = Ending
        pieces = list(generate(session, [5, 6], GREEDY, 10))
    assert len(pieces) == 3
    assert (pieces[-1].token, pieces[-1].text, pieces[-1].finish) == (end, "", "stop")


def test_refused_prompts(files: tuple[Path, Path]) -> None:
    with open_model(files[0], OPTIONS) as session:
        for prompt, most, text in (
            ([], 5, "the prompt is empty\ntry: -p with some text"),
            (
                [1] * 65,
                None,
                "the prompt has 65 tokens, the context holds 64\ntry: --context 321",
            ),
            ([1], 0, "--max-tokens is 0\ntry: --max-tokens of 1 or more"),
        ):
            with pytest.raises(UserError) as caught:
                next(generate(session, prompt, GREEDY, most))
            assert str(caught.value) == text


def test_chat_uses_the_files_template(
    files: tuple[Path, Path], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    with open_model(files[0], OPTIONS) as session:
        asked = [{"role": "user", "content": "Hi"}]
        assert chat_prompt(session.vocabulary, asked).text == "<user>Hi\n<assistant>"
        with pytest.raises(UserError) as caught:
            chat_prompt(session.vocabulary, [{"role": "assistant", "content": "Hi"}])
        assert str(caught.value) == (
            "the chat template cannot render these messages: user first\n"
            "try: user and assistant in turn, beginning with user"
        )
    export_ragged(checkpoint_of("olmoe"), tmp_path / "plain.gguf")
    with open_model(tmp_path / "plain.gguf", OPTIONS) as session:
        with pytest.raises(UserError) as caught:
            chat_prompt(session.vocabulary, [])
        assert str(caught.value) == (
            "the file has no chat template\ntry: run it with --raw, or ask /v1/completions"
        )


def test_bench_measures_both_runtimes(files: tuple[Path, Path]) -> None:
    for file, runtime in zip(files, ("tenp-edge (per-expert)", "llama.cpp"), strict=True):
        result = bench(file, OPTIONS, prompt_tokens=32, generated_tokens=8, repeats=1)
        assert result.runtime == runtime and result.file_bytes == file.stat().st_size
        assert result.prefill_tokens_per_second > 0 and result.decode_tokens_per_second > 0
        assert json.loads(result.to_json())["peak_rss_bytes"] == result.peak_rss_bytes > 2**24
    with pytest.raises(UserError) as caught:
        bench(files[0], OPTIONS)
    assert str(caught.value) == (
        "512 + 64 tokens do not fit into a context of 64\ntry: --context 576"
    )

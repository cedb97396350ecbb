"""Speed of a file as it runs here: tokens per second in prefill and decode, and peak memory."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.memory.resident import peak_rss_bytes
from tenp_edge.runtime.opening import RunOptions, model_bytes, open_model
from tenp_edge.runtime.session import Session, thread_count


@dataclass(frozen=True)
class BenchResult:
    """Medians over ``repeats``. ``peak_rss_bytes`` is of the whole process so far."""

    file: str
    runtime: str
    file_bytes: int
    threads: int
    kv_type: str
    prompt_tokens: int
    generated_tokens: int
    repeats: int
    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_rss_bytes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def bench(
    file: str | Path,
    options: RunOptions | None = None,
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 64,
    repeats: int = 3,
    seed: int = 0,
) -> BenchResult:
    """Time ``file``: a prompt of random tokens, then single tokens, as llama-bench does.

    One round that is not counted comes first. Raises UserError when both do not fit the context.
    """
    file, options = Path(file), options or RunOptions()
    if min(prompt_tokens, generated_tokens, repeats) < 1:
        raise UserError(
            "a benchmark needs at least one token of each kind and one repeat",
            "--prompt-tokens 512 --generated-tokens 64 --repeats 3",
        )
    if options.context is not None:
        _check_fits(prompt_tokens, generated_tokens, options.context)
    begun = time.perf_counter()
    with open_model(file, options) as session:
        loaded = time.perf_counter() - begun
        _check_fits(prompt_tokens, generated_tokens, session.context)
        tokens = np.random.default_rng(seed).integers(
            session.vocab_size, size=prompt_tokens + generated_tokens
        )
        rounds = [_round(session, tokens.tolist(), prompt_tokens) for _ in range(repeats + 1)]
        return BenchResult(
            file=str(file),
            runtime=session.runtime,
            file_bytes=model_bytes(file),
            threads=thread_count(options.threads),
            kv_type=session.kv_type,
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            repeats=repeats,
            load_seconds=loaded,
            prefill_tokens_per_second=prompt_tokens / median(first for first, _ in rounds[1:]),
            decode_tokens_per_second=generated_tokens / median(second for _, second in rounds[1:]),
            peak_rss_bytes=peak_rss_bytes(),
        )


def _check_fits(prompt_tokens: int, generated_tokens: int, context: int) -> None:
    if prompt_tokens + generated_tokens > context:
        fitting = context - generated_tokens  # where the model knows no larger context
        shorter = f", or --prompt-tokens {fitting}" if fitting > 0 else ""
        raise UserError(
            f"{prompt_tokens} + {generated_tokens} tokens do not fit into a context of {context}",
            f"--context {prompt_tokens + generated_tokens}{shorter}",
        )


def _round(session: Session, tokens: list[int], prompt_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt, seconds of the tokens after it."""
    session.reset()
    start = time.perf_counter()
    session.evaluate(tokens[:prompt_tokens])
    between = time.perf_counter()
    for token in tokens[prompt_tokens:]:
        session.decode(token)
    return between - start, time.perf_counter() - between

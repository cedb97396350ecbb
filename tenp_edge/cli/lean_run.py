"""`tenp-edge run`: a file opened, and text written as it comes. Loads nothing that it does not use:
what this module imports is in memory to the end of every run (`runtime.peak` counts it)."""

from __future__ import annotations

import sys
from pathlib import Path

from tenp_edge.cli import conversation
from tenp_edge.cli.notes import note
from tenp_edge.runtime.locating import runnable
from tenp_edge.runtime.opening import RunOptions, model_bytes, open_model
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.units import format_size


def run(
    file: Path,
    *,
    prompt: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    context: int | None,
    threads: int | None,
    ubatch: int | None,
    kv_type: str | None,
    gpu_layers: int,
    no_prepack: bool,
) -> None:
    """Continue a prompt, or converse; the text goes to stdout, everything else to stderr.

    The parameters are the flags of `lean_flags.RUN`. Raises UserError for what cannot be run.
    """
    file = runnable(file)
    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    sampling.check()
    prompt_text = prompt if chat else conversation.read_prompt(prompt)
    options = RunOptions(
        context, threads, ubatch, kv_type, gpu_layers=gpu_layers, prepack=not no_prepack, note=note
    )
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    with open_model(file, options) as session:
        note(f"{file.name}, {format_size(model_bytes(file))}, in {session.runtime}")
        if chat:
            conversation.converse(
                session, prompt_text, system, sampling, max_tokens, sys.stdout, note
            )
        else:
            assert prompt_text is not None
            conversation.continue_text(session, prompt_text, sampling, max_tokens, sys.stdout, note)

"""Peak resident memory of `tenp-edge run FILE`: predicted from the header, and measured.

Predicting happens in a fresh process that has loaded what `run` loads. It opens the file, which may
be an outline (a header and a hole), computes the sizes of cache and compute buffer, and measures
what the process takes by then; no weight is read and neither of the two is allocated. Measured is
the command itself, by the system's own account of it.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.child import ChildError, ask, environment
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.memory import peak_questions
from tenp_edge.runtime.memory.command_peak import peak_of
from tenp_edge.runtime.memory.footprint import MemoryRun, RunMemory

DECODE_STEPS = 32
PROMPT_TOKENS = 2048
_known: dict[str, RunMemory] = {}
# What the process of `tenp-edge run` has imported, and this one need not; and what it imports
# besides where the file has a chat template.
_PROGRAM = ("tenp_edge.cli.entry", "tenp_edge.cli.commands.lean_run")
_CONVERSATION = ("tenp_edge.cli.chat.commands", "tenp_edge.cli.chat.lines")


def measure_peak_rss(
    file: str | Path,
    *,
    context: int,
    ubatch: int,
    kv_type: str,
    threads: int,
    prompt_tokens: int | None = None,
) -> int:
    """Peak resident bytes of ``tenp-edge run FILE`` with these flags: the command itself, with a
    prompt of ``prompt_tokens`` (by default as many as the context holds, 2048 at most) from all
    over the vocabulary, and 32 tokens generated."""
    file, run = Path(file), MemoryRun(context, ubatch, kv_type, threads)
    room = max(1, context - DECODE_STEPS)
    tokens = min(PROMPT_TOKENS if prompt_tokens is None else prompt_tokens, room)
    try:
        prompt = ask(peak_questions.prompt, {"file": str(file), "tokens": tokens})["text"]
    except ChildError as error:
        raise _unmeasured(file, str(error)) from None
    done = peak_of(run_command(file, run), prompt, environment())
    if done.status:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise _unmeasured(file, f"exit {done.status}: {last}")
    return done.peak_bytes


def run_command(file: Path, run: MemoryRun, verb: str = "run") -> list[str]:
    """``tenp-edge run FILE`` as typed, with every flag that its memory depends on."""
    flags = {
        "--context": run.context,
        "--ubatch": run.ubatch,
        "--kv-type": run.kv_type,
        "--threads": run.threads,
        "-n": DECODE_STEPS,
        "--seed": 0,
    }
    typed = [str(part) for pair in flags.items() for part in pair]
    raw = ["--raw"] if verb == "run" else []  # The prompt is to be as long as it was made.
    return [sys.executable, "-m", "tenp_edge", verb, str(file), *raw, *typed]


def _unmeasured(file: Path, why: str) -> UserError:
    return UserError(
        f"measuring {file.name} failed with {why}", "more free memory, or a smaller --context"
    )


def predict_peak(file: str | Path, run: MemoryRun) -> RunMemory:
    """What running ``file`` (or its outline) as ``run`` says takes here, without running it.

    Raises UserError when the runtime refuses the file or the run, ChildError when it dies.
    """
    facts = {"file": str(file), "conversation": _CONVERSATION, **asdict(run)}
    return RunMemory.from_json(ask(peak_questions.predict, facts, _PROGRAM))


def known_peak(file: Path, run: MemoryRun) -> RunMemory:
    """`predict_peak`, remembered: the same header and run get the very same answer, although what
    a process takes differs by some pages from one to the next."""
    header = read_header(file)
    state = hashlib.sha256(repr((header.data_start, file.stat().st_size, run)).encode())
    with file.open("rb") as stream:
        state.update(stream.read(header.data_start))
    key = state.hexdigest()
    if key not in _known:
        _known[key] = predict_peak(file, run)
    return _known[key]

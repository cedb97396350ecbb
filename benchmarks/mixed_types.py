"""Experts in types of their own beside files of one type each, at the same widths (bench_runtime's
``--types mixed``).

Every expert's gate and up, and its down, take a random one of TYPES; in each layer all types come
equally often among the wide and among the narrow experts. What decode promises is the mean of the
single types' times, weighed by the share of the experts' weights (so bytes go at the speed of their
own type); a prefill is to be no slower than the slowest of the types alone. Everything but the
experts is Q8_0. A token's time is its least over the rounds: the machine may have other work.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from random_gguf import TypeOf, typed_entries, write_random

from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.models import ModelConfig
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.session import Session

TYPES = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ3_S", "IQ2_S")
MIXED = "mixed"
_LAYOUT = "per-expert"


@dataclass(frozen=True)
class MixedSpeeds:
    """Tokens per second by file, the mixed one among them; ``shares``: of the experts' weights in
    the mixed file, by type."""

    prefill: dict[str, float]
    decode: dict[str, float]
    shares: dict[str, float]

    @property
    def promised(self) -> float:
        """Decode speed of the mixed file if its bytes went at the speed of their own types."""
        return 1 / sum(share / self.decode[kind] for kind, share in self.shares.items())

    @property
    def slowest_prefill(self) -> float:
        return min(speed for kind, speed in self.prefill.items() if kind != MIXED)


def measure(
    config: ModelConfig, folder: Path, threads: int, prompt: int, decode: int, rounds: int
) -> MixedSpeeds:
    """Rounds alternate between the files, which are written into ``folder``."""
    chosen = _types_of(config)
    files = {kind: _written(config, kind, chosen, folder) for kind in (*TYPES, MIXED)}
    options = RunOptions(context=1024, threads=threads)
    sessions = {kind: open_model(file, options) for kind, file in files.items()}
    best = {kind: np.full(1 + decode, np.inf) for kind in files}
    for _ in range(rounds + 1):  # The first round only warms up.
        for kind, session in sessions.items():
            best[kind] = np.minimum(best[kind], _round(session, prompt, decode))
    for session in sessions.values():
        session.close()
    return MixedSpeeds(
        prefill={kind: prompt / float(times[0]) for kind, times in best.items()},
        decode={kind: decode / float(times[1:].sum()) for kind, times in best.items()},
        shares=_shares(config, chosen),
    )


def report(speeds: MixedSpeeds) -> None:
    print("type    prefill tok/s   decode tok/s")
    for kind in speeds.decode:
        print(f"{kind:7} {speeds.prefill[kind]:13.1f} {speeds.decode[kind]:14.1f}")
    decode = speeds.decode[MIXED] / speeds.promised
    prefill = speeds.prefill[MIXED] / speeds.slowest_prefill
    print(f"decode of the mix over what its bytes promise: {decode:.3f}")
    print(f"prefill of the mix over that of its slowest type: {prefill:.3f}")


def _types_of(config: ModelConfig) -> TypeOf:
    """The mixed file's: as many experts of each type as of any other, by width."""
    random = np.random.default_rng(0)
    chosen: dict[tuple[int, int, bool], str] = {}
    for layer, widths in config.expert_widths.items():
        for is_down in (False, True):
            for width in sorted(set(widths)):
                experts = [expert for expert, own in enumerate(widths) if own == width]
                for place, expert in enumerate(random.permutation(experts)):
                    chosen[layer, int(expert), is_down] = TYPES[place % len(TYPES)]

    def type_of(entry: Entry) -> str:
        if entry.layer is None or entry.expert is None:
            return "Q8_0"
        return chosen[entry.layer, entry.expert, entry.role == "expert_down"]

    return type_of


def _alone(kind: str) -> TypeOf:
    return lambda entry: "Q8_0" if entry.expert is None else kind


def _written(config: ModelConfig, kind: str, chosen: TypeOf, folder: Path) -> Path:
    file = folder / f"{kind}.gguf"
    write_random(config, _LAYOUT, chosen if kind == MIXED else _alone(kind), file)
    return file


def _shares(config: ModelConfig, chosen: TypeOf) -> dict[str, float]:
    weights: Counter[str] = Counter()
    for entry, kind in typed_entries(config, _LAYOUT, chosen):
        if entry.expert is not None:
            weights[kind] += prod(entry.tensor.shape)
    return {kind: count / weights.total() for kind, count in weights.items()}


def _round(session: Session, prompt: int, decode: int) -> npt.NDArray[np.float64]:
    """Seconds of the prompt, then of every token after it."""
    tokens = np.random.default_rng(1).integers(session.vocab_size, size=prompt + decode).tolist()
    session.reset()
    parts = [tokens[:prompt], *([token] for token in tokens[prompt:])]
    return np.array([_seconds(session, part) for part in parts])


def _seconds(session: Session, tokens: list[int]) -> float:
    start = time.perf_counter()
    session.evaluate(tokens)
    return time.perf_counter() - start

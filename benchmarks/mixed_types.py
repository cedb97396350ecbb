"""Experts in types of their own beside files of one type each, at the same widths (bench_runtime's
``--types mixed``).

Every expert's gate and up, and its down, take a random one of TYPES; in each layer all types come
equally often among the wide and among the narrow experts. What a file promises is the mean of the
single types' times, weighed by the share of the experts' weights (so bytes go at the speed of their
own type); a prefill is to be no slower than the slowest of the types alone. Everything but the
experts is Q8_0. The embeddings are independent rows of float32: from encoded blocks that repeat,
all tokens would be much alike and go to the same few experts, whose types then decide. A token's
time is its least over the rounds, a prefill's ratio the median of the rounds' own: the machine may
have other work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
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
    """By file, the mixed one among them: ``prefill``, seconds of every round; ``decode``, tokens
    per second. ``shares``: of the experts' weights in the mixed file, by type."""

    prefill: dict[str, list[float]]
    decode: dict[str, float]
    shares: dict[str, float]

    @property
    def decode_of_promised(self) -> float:
        """Decode of the mixed file if its bytes went at the speed of their own types, over it."""
        promised = sum(share / self.decode[kind] for kind, share in self.shares.items())
        return promised * self.decode[MIXED]

    @property
    def prefill_of_promised(self) -> float:
        return median(
            sum(share * times[kind] for kind, share in self.shares.items()) / times[MIXED]
            for times in self._rounds()
        )

    @property
    def prefill_of_slowest(self) -> float:
        slowest = max(self.shares, key=lambda kind: median(self.prefill[kind]))
        return median(times[slowest] / times[MIXED] for times in self._rounds())

    def _rounds(self) -> list[Mapping[str, float]]:
        columns = zip(*self.prefill.values(), strict=True)
        return [dict(zip(self.prefill, times, strict=True)) for times in columns]


@dataclass(frozen=True)
class Sizes:
    """Of a measurement: threads, tokens of the prompt and behind it, and how often."""

    threads: int
    prompt: int
    decode: int
    rounds: int
    clock: Callable[[], float]


def measure(config: ModelConfig, folder: Path, sizes: Sizes) -> MixedSpeeds:
    """Rounds alternate between the files, which are written into ``folder``."""
    chosen = _types_of(config)
    files = {kind: _written(config, kind, chosen, folder) for kind in (*TYPES, MIXED)}
    options = RunOptions(context=1024, threads=sizes.threads)
    sessions = {kind: open_model(file, options) for kind, file in files.items()}
    rounds = [  # The first only warms up.
        {kind: _round(session, sizes) for kind, session in sessions.items()}
        for _ in range(sizes.rounds + 1)
    ][1:]
    for session in sessions.values():
        session.close()
    least = {kind: np.min([times[kind] for times in rounds], axis=0) for kind in files}
    return MixedSpeeds(
        prefill={kind: [float(times[kind][0]) for times in rounds] for kind in files},
        decode={kind: sizes.decode / float(times[1:].sum()) for kind, times in least.items()},
        shares=_shares(config, chosen),
    )


def report(speeds: MixedSpeeds, prompt: int) -> None:
    print("type    prefill tok/s   decode tok/s")
    for kind in speeds.decode:
        prefill = prompt / median(speeds.prefill[kind])
        print(f"{kind:7} {prefill:13.1f} {speeds.decode[kind]:14.1f}")
    print(f"decode of the mix over what its bytes promise: {speeds.decode_of_promised:.3f}")
    print(f"prefill of the mix over what its weights promise: {speeds.prefill_of_promised:.3f}")
    print(f"prefill of the mix over that of its slowest type: {speeds.prefill_of_slowest:.3f}")


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
            return _besides(entry)
        return chosen[entry.layer, entry.expert, entry.role == "expert_down"]

    return type_of


def _alone(kind: str) -> TypeOf:
    return lambda entry: _besides(entry) if entry.expert is None else kind


def _besides(entry: Entry) -> str:
    return "F32" if entry.role == "embed" else "Q8_0"


def _written(config: ModelConfig, kind: str, chosen: TypeOf, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kind}.gguf"
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(config.vocab_size, config.hidden_size, generator=generator)
    types = chosen if kind == MIXED else _alone(kind)
    write_random(config, _LAYOUT, types, file, {"token_embd.weight": embeddings})
    return file


def _shares(config: ModelConfig, chosen: TypeOf) -> dict[str, float]:
    weights: Counter[str] = Counter()
    for entry, kind in typed_entries(config, _LAYOUT, chosen):
        if entry.expert is not None:
            weights[kind] += prod(entry.tensor.shape)
    return {kind: count / weights.total() for kind, count in weights.items()}


def _round(session: Session, sizes: Sizes) -> npt.NDArray[np.float64]:
    """Seconds of the prompt, then of every token after it."""
    random, prompt = np.random.default_rng(1), sizes.prompt
    tokens = random.integers(session.vocab_size, size=prompt + sizes.decode).tolist()
    session.reset()
    parts = [tokens[:prompt], *([token] for token in tokens[prompt:])]
    return np.array([_seconds(session, part, sizes.clock) for part in parts])


def _seconds(session: Session, tokens: list[int], clock: Callable[[], float]) -> float:
    start = clock()
    session.evaluate(tokens)
    return clock() - start

"""Choosing the next token, in the order and with the meaning of llama.cpp's samplers.

logits -> repeat penalty -> top-k -> top-p -> min-p -> temperature -> draw
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError

Logits = npt.NDArray[np.float32]
# Below it a temperature only says "the best token": what float32 logits differ by, divided by it,
# is beyond what a float can hold.
COLDEST = 1e-6
_LARGEST_SCORE = 1e100


@dataclass(frozen=True)
class SamplingOptions:
    """llama.cpp's defaults. ``temperature`` 0 (or below 1e-6) takes the best token; ``top_k`` 0,
    ``top_p`` 1, ``min_p`` 0 and ``repeat_penalty`` 1 are off; ``seed`` None draws differently every
    time."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def check(self) -> None:
        """Raise UserError for a value that means nothing."""
        for name, value, fits, range_ in (
            ("temperature", self.temperature, 0.0 <= self.temperature < np.inf, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 to 1"),
            ("repeat-penalty", self.repeat_penalty, 0 < self.repeat_penalty < np.inf, "above 0"),
            ("repeat-last-n", self.repeat_last_n, self.repeat_last_n >= 0, "0 or more"),
        ):
            if not fits:
                raise UserError(f"--{name} is {value}", f"--{name} of {range_}")


class Sampler:
    """Draws tokens one after the other; what it has drawn or `accept`ed counts as repeated."""

    def __init__(self, options: SamplingOptions, accepted: Iterable[int] = ()) -> None:
        options.check()
        self.options = options
        # Not numpy.random, which takes 7 MiB.
        self._random = random.Random(options.seed)
        self._recent: deque[int] = deque(accepted, maxlen=options.repeat_last_n)

    def accept(self, token: int) -> None:
        self._recent.append(token)

    def choose(self, logits: Logits) -> int:
        """The next token for ``logits`` [vocab]."""
        tokens, shares = distribution(logits, self.options, self._recent)
        if len(tokens) == 1:
            return int(tokens[0])
        drawn = np.searchsorted(shares.cumsum(), self._random.random(), side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])


def distribution(
    logits: Logits, options: SamplingOptions, recent: Iterable[int] = ()
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that may be drawn, best first, and their probabilities.

    Raises UserError for logits that are not finite: nothing can be drawn from them.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            "the model computes NaN or infinity: its weights are damaged", "a sound copy of it"
        )
    scores = logits.astype(np.float64)
    _penalise(scores, recent, options.repeat_penalty)
    if options.temperature < COLDEST:
        return np.array([int(scores.argmax())]), np.ones(1)
    tokens = _best(scores, options.top_k)
    shares = _softmax(scores[tokens])
    if options.top_p < 1.0:
        # The token that passes the threshold still belongs.
        tokens = tokens[: int(np.searchsorted(shares.cumsum(), options.top_p)) + 1]
    kept = shares[: len(tokens)] >= options.min_p * shares[0]
    tokens = tokens[kept]
    return tokens, _softmax(scores[tokens] / options.temperature)


def _penalise(scores: npt.NDArray[np.float64], recent: Iterable[int], penalty: float) -> None:
    """Divide positive and multiply other scores of repeated tokens (CTRL, arXiv 1909.05858)."""
    repeated = np.fromiter(set(recent), dtype=np.int64)  # np.unique would load numpy.ma
    if penalty == 1.0 or not len(repeated):
        return
    before = scores[repeated]
    with np.errstate(over="ignore"):
        penalised = np.where(before > 0, before / penalty, before * penalty)
    scores[repeated] = penalised.clip(-_LARGEST_SCORE, _LARGEST_SCORE)


def _best(scores: npt.NDArray[np.float64], top_k: int) -> npt.NDArray[np.int64]:
    """The ``top_k`` best tokens (0: all), best first; of equals the lower number."""
    count = len(scores) if top_k == 0 else min(top_k, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    best.sort()
    order: npt.NDArray[np.int64] = best[np.argsort(-scores[best], kind="stable")]
    return order


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    raised = np.exp(scores - scores[0])
    shares: npt.NDArray[np.float64] = raised / raised.sum()
    return shares

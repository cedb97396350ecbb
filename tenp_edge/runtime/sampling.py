"""Choosing the next token, in the order and with the meaning of llama.cpp's samplers.

logits -> what a constraint allows -> logit bias -> penalties -> top-k -> typical -> top-p -> min-p
-> temperature -> draw
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError

Logits = npt.NDArray[np.float32]
# Below it a temperature only says "the best token": what float32 logits differ by, divided by it,
# is beyond what a float can hold.
COLDEST = 1e-6
_LARGEST_SCORE = 1e100
_LEAST_SCORE = -np.finfo(np.float64).max  # of a token that is not excluded
_RUN = 64  # tokens
Scores = npt.NDArray[np.float64]


class Constraint(Protocol):
    """What the text of one sequence may be, from token to token."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocab]: the tokens that may come next, at least one of them."""

    def accept(self, token: int) -> None:
        """Go on after ``token``, one of the `allowed`."""


class Grammar(Protocol):
    """What answers may be: `grammars.GrammarCompiler` makes one."""

    def constraint(self) -> Constraint:
        """A constraint of a new sequence, at its beginning."""


@dataclass(frozen=True)
class SamplingOptions:
    """llama.cpp's defaults. ``temperature`` 0 (or below 1e-6) takes the best token; ``top_k`` 0,
    ``top_p`` 1, ``min_p`` 0, ``typical_p`` 1, ``repeat_penalty`` 1 and other penalties of 0 are
    off; ``seed`` None draws differently every time. ``logit_bias`` is added to the logits of
    tokens; minus infinity excludes one. ``grammar``: what the answer may be.

    Of the answer, not of the choice: ``logprobs`` is the number of best tokens that are told with
    their log probabilities beside the chosen one's (None: nothing is told), ``shown`` are control
    tokens whose text belongs to the answer.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    shown: frozenset[int] = frozenset()

    def check(self) -> None:
        """Raise UserError for a value that means nothing."""
        for name, value, fits, range_ in (
            ("temperature", self.temperature, 0.0 <= self.temperature < np.inf, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0.0 <= self.top_p <= 1.0, "0 to 1"),
            ("min-p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 to 1"),
            ("repeat-penalty", self.repeat_penalty, 0 < self.repeat_penalty < np.inf, "above 0"),
            ("typical-p", self.typical_p, 0.0 <= self.typical_p <= 1.0, "0 to 1"),
            ("presence-penalty", self.presence_penalty, _finite(self.presence_penalty), "a number"),
            (
                "frequency-penalty",
                self.frequency_penalty,
                _finite(self.frequency_penalty),
                "a number",
            ),
            ("repeat-last-n", self.repeat_last_n, self.repeat_last_n >= 0, "0 or more"),
        ):
            if not fits:
                raise UserError(f"--{name} is {value}", f"--{name} of {range_}")


def _finite(value: float) -> bool:
    return bool(np.isfinite(value))


class Sampler:
    """Draws tokens one after the other; what was ``accepted`` counts as repeated, as does every
    token that `accept` is told of."""

    def __init__(self, options: SamplingOptions, accepted: Iterable[int] = ()) -> None:
        options.check()
        self.options = options
        # Not numpy.random, which takes 7 MiB.
        self._random = random.Random(options.seed)
        self._recent: deque[int] = deque(accepted, maxlen=options.repeat_last_n)
        self._constraint = options.grammar.constraint() if options.grammar else None

    def accept(self, token: int) -> None:
        self._recent.append(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def choose(self, logits: Logits) -> int:
        """The next token for ``logits`` [vocab]."""
        allowed = None if self._constraint is None else self._constraint.allowed()
        tokens, shares = distribution(logits, self.options, self._recent, allowed)
        if len(tokens) == 1:
            return int(tokens[0])
        drawn = np.searchsorted(shares.cumsum(), self._random.random(), side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])


def distribution(
    logits: Logits,
    options: SamplingOptions,
    recent: Iterable[int] = (),
    allowed: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that may be drawn, best first, and their probabilities.

    Raises UserError for logits that are not finite: nothing can be drawn from them.
    """
    scores = _scores(logits)
    if allowed is not None:
        scores[~allowed] = -np.inf
    for token, bias in options.logit_bias:
        scores[token] += bias
    _penalise(scores, recent, options)
    if options.temperature < COLDEST:
        best = int(scores.argmax())
        if scores[best] == -np.inf:
            raise _nothing_left()
        return np.array([best]), np.ones(1)
    tokens = _cut(scores, options)
    return tokens, _softmax(scores[tokens] / options.temperature)


@dataclass(frozen=True)
class Logprobs:
    """Log probabilities in nats, of the model itself: ``chosen`` of the token that was chosen,
    ``best`` of the most probable ones, (token, log probability)."""

    chosen: float
    best: tuple[tuple[int, float], ...]


def logprobs(logits: Logits, token: int, count: int) -> Logprobs:
    """What ``logits`` [vocab] say of ``token`` and of the ``count`` best ones."""
    scores = _scores(logits)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    best = _best(scores, count) if count else np.empty(0, dtype=np.int64)
    return Logprobs(float(scores[token]), tuple((int(t), float(scores[t])) for t in best))


def _scores(logits: Logits) -> Scores:
    if not np.isfinite(logits).all():
        raise UserError(
            "the model computes NaN or infinity: its weights are damaged", "a sound copy of it"
        )
    return logits.astype(np.float64)


def _nothing_left() -> UserError:
    return UserError("no token may be drawn: all are excluded", "a smaller logit_bias")


def _cut(scores: Scores, options: SamplingOptions) -> npt.NDArray[np.int64]:
    """The tokens that top-k, typical, top-p and min-p leave, best first."""
    tokens = _best(scores, options.top_k)
    if not len(tokens):
        raise _nothing_left()
    shares = _softmax(scores[tokens])
    if options.typical_p < 1.0:
        kept = _typical(shares, options.typical_p)
        tokens, shares = tokens[kept], shares[kept] / shares[kept].sum()
    if options.top_p < 1.0:
        # The token that passes the threshold still belongs.
        tokens = tokens[: int(np.searchsorted(shares.cumsum(), options.top_p)) + 1]
    left: npt.NDArray[np.int64] = tokens[shares[: len(tokens)] >= options.min_p * shares[0]]
    return left


def _typical(shares: Scores, typical_p: float) -> npt.NDArray[np.bool_]:
    """The tokens whose surprise is nearest to the expected one, until they have ``typical_p`` of
    the probability together (locally typical sampling, arXiv 2202.00666)."""
    surprise = -np.log(shares.clip(1e-300))
    distance = np.abs(surprise - (shares * surprise).sum())
    order = np.argsort(distance, kind="stable")
    count = int(np.searchsorted(shares[order].cumsum(), typical_p, side="right")) + 1
    kept = np.zeros(len(shares), dtype=np.bool_)
    kept[order[:count]] = True
    return kept


def _penalise(scores: Scores, recent: Iterable[int], options: SamplingOptions) -> None:
    """Lower the scores of repeated tokens: positive ones divided, others multiplied (CTRL, arXiv
    1909.05858), then OpenAI's penalties, for being there and for each time."""
    penalty = options.repeat_penalty
    if penalty == 1.0 and not options.presence_penalty and not options.frequency_penalty:
        return
    counts = Counter(recent)
    repeated = np.fromiter(counts, dtype=np.int64)  # np.unique would load numpy.ma
    times = np.fromiter(counts.values(), dtype=np.int64)
    before = scores[repeated]
    with np.errstate(over="ignore"):
        penalised = np.where(before > 0, before / penalty, before * penalty)
    penalised -= options.presence_penalty + options.frequency_penalty * times
    bounded = penalised.clip(-_LARGEST_SCORE, _LARGEST_SCORE)
    scores[repeated] = np.where(before == -np.inf, before, bounded)


def _best(scores: Scores, top_k: int) -> npt.NDArray[np.int64]:
    """The ``top_k`` best tokens (0: all) that are not excluded, best first; of equals the lower
    number."""
    count = top_k or len(scores)
    likely = np.flatnonzero(scores >= _bound(scores, count))
    order: npt.NDArray[np.int64] = likely[np.argsort(-scores[likely], kind="stable")][:count]
    return order


def _bound(scores: Scores, count: int) -> float:
    """What ``count`` scores reach at least, and few more: so many runs of tokens have a best one
    above it. To sort a large vocabulary takes as long as a layer."""
    runs = len(scores) // _RUN
    if count > runs:
        return _LEAST_SCORE
    best = scores[: runs * _RUN].reshape(runs, _RUN).max(axis=1)
    return max(float(np.partition(best, runs - count)[runs - count]), _LEAST_SCORE)


def _softmax(scores: Scores) -> Scores:
    raised = np.exp(scores - scores[0])
    shares: Scores = raised / raised.sum()
    return shares

"""How far a model is from the one it was made of, in words. Pure.

Mean KL divergence and the share of places where both put the same token first mean little to most
people; what a quantisation type does to a model is common knowledge. So the levels are those of
llama.cpp's types, as measured there on LLaMA 3 8B and Wikitext-2 (tools/perplexity/README.md):

    Q8_0 .0014 97.7 %   Q6_K .0055 96.0 % | Q5_K_M .011   Q4_K_M .031 91.9 %   Q4_K_S .043 |
    Q4_0 .072   Q3_K_M .102   IQ3_XS .139 | Q3_K_S .228   Q2_K .445 71.1 %

A model as good as Q6_K is one that nobody tells from the original, Q4_K_M is what most people run,
Q3 is where answers get worse, Q2_K is for want of anything better. The same-token limits lie on the
line through those that are known: 95, 90 and 83 %. The worse of the two numbers decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Below, the share of the same token is uncertain by two percent and more.
_FEW_TOKENS = 500


@dataclass(frozen=True)
class Level:
    """Up to ``mean_kl`` nats a token and from a share of ``same_top`` on; ``like``: the types of
    llama.cpp that change an 8 B model as much."""

    word: str
    mean_kl: float
    same_top: float
    like: str

    def holds(self, mean_kl: float, same_top: float) -> bool:
        return mean_kl <= self.mean_kl and same_top >= self.same_top


LEVELS = (
    Level("almost no", 0.01, 0.95, "Q8_0 or Q6_K"),
    Level("small", 0.05, 0.90, "Q5_K_M to Q4_K_S"),
    Level("noticeable", 0.15, 0.83, "Q4_0 to Q3_K_M"),
    Level("large", float("inf"), 0.0, "Q3_K_S, Q2_K or below"),
)


@dataclass(frozen=True)
class Verdict:
    """``difference``: the word; ``worse``: domains that fare worse, with theirs."""

    difference: str
    like: str
    mean_kl: float
    same_top: float
    tokens: int
    worse: Mapping[str, str]

    @property
    def is_rough(self) -> bool:
        """Whether it is of so few tokens that it is uncertain by percents."""
        return self.tokens < _FEW_TOKENS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """A sentence or two."""
        article = "" if self.difference == "almost no" else "a "
        text = (
            f"{article}{self.difference} difference to the whole model: both put the same token "
            f"first in {100 * self.same_top:.1f} % of places (KL {_kl(self.mean_kl)} over "
            f"{self.tokens:,} tokens; an 8 B model changes about as much by {self.like})"
        )
        if self.is_rough:
            text += "; a rough figure, of few tokens"
        if self.worse:
            text += "; " + ", ".join(f"{word} on {name}" for name, word in self.worse.items())
        return text


def judge(overall: Mapping[str, Any], domains: Iterable[Mapping[str, Any]] = ()) -> Verdict:
    """The verdict on ``overall``, a row of a validation report, and on its ``domains``."""
    number = _level(overall)
    levels = {str(row["domain"]): _level(row) for row in domains}
    return Verdict(
        LEVELS[number].word,
        LEVELS[number].like,
        overall["mean_kl"],
        overall["same_top"],
        overall["tokens"],
        {name: LEVELS[level].word for name, level in levels.items() if level > number},
    )


def _kl(nats: float) -> str:
    return "below 0.0001" if 0 < nats < 5e-5 else f"{nats:.4f}"


def expected(mean_kl: float) -> str:
    """The word for a predicted KL."""
    return next((level.word for level in LEVELS if mean_kl <= level.mean_kl), LEVELS[-1].word)


def _level(row: Mapping[str, Any]) -> int:
    """Of the best level whose limits ``row`` keeps; not a number keeps none."""
    held = (n for n, level in enumerate(LEVELS) if level.holds(row["mean_kl"], row["same_top"]))
    return next(held, len(LEVELS) - 1)

"""The fields that every request for text shares: OpenAI's, and llama.cpp's samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, StrictBool
from pydantic_core import PydanticCustomError

from tenp_edge.runtime.grammars import LARK_MARK, GrammarSource
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.serving.schemas.refusing import Asked, Lenient
from tenp_edge.serving.schemas.wording import WrongError

_STOPS = 16
_MOST_PROMPTS = 64
_MOST_BIASES = 1024
_ALL = -1
Stop = Annotated[str, Field(max_length=256)]


def _no_truth(kind: Literal["int", "float"]) -> BeforeValidator:
    """JSON's true is no number; Python's is one. ``kind`` as in `wording`."""

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError(kind, "no number")
        return value

    return BeforeValidator(check)


Whole = Annotated[int, _no_truth("int")]
Finite = Annotated[float, Field(allow_inf_nan=False), _no_truth("float")]
Bias = Finite | StrictBool


class StreamOptions(Lenient):
    """``include_usage``: a last chunk without choices that has the counts."""

    include_usage: StrictBool | None = None


class GenerationRequest(Asked):
    """What to generate with; a field that is None is the server's to choose."""

    model: str | None = None
    max_tokens: Whole | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "max_completion_tokens", "n_predict")
    )
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_STOPS)] | None = Field(
        None, description=f"text of at most 256 characters, or a list of up to {_STOPS} such texts"
    )
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    typical_p: Finite | None = Field(None, ge=0, le=1)
    repeat_penalty: Finite | None = Field(
        None, gt=0, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    repeat_last_n: Whole | None = Field(None, ge=_ALL)
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**64)
    logit_bias: dict[str, Bias] | list[tuple[int | str, Bias]] | None = Field(
        None, description="an object of token numbers and biases, or a list of such pairs"
    )
    ignore_eos: StrictBool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | StrictBool | None = None
    n: Whole | None = Field(None, ge=1, le=16)

    def stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    def sampling(self, defaults: SamplingOptions, context: int) -> SamplingOptions:
        """``defaults`` of the server with what the request says."""
        names = (
            "temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty"
        )
        options: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        if self.top_k is not None:
            options["top_k"] = max(0, self.top_k)  # -1: all of them
        if self.repeat_last_n is not None:
            every = self.repeat_last_n == _ALL
            options["repeat_last_n"] = context if every else min(self.repeat_last_n, context)
        if self.seed is not None:
            options["seed"] = self.seed % 2**64
        return replace(defaults, **{k: v for k, v in options.items() if v is not None})

    def biases(self) -> list[tuple[str, float]]:
        """(token number or text, bias); false excludes a token."""
        stated = self.logit_bias or {}
        pairs = stated.items() if isinstance(stated, Mapping) else stated
        return [(str(token), _bias(value)) for token, value in pairs][:_MOST_BIASES]

    def wanted_tokens(self) -> int | None:
        """Tokens to generate at most; None: as many as the context holds."""
        return None if self.max_tokens is None or self.max_tokens < 0 else self.max_tokens

    def grammar_source(self) -> GrammarSource | None:
        """What the text must follow: llama.cpp's two fields."""
        if self.grammar:
            return grammar_of(self.grammar)
        if self.json_schema is not None:
            return GrammarSource.schema(self.json_schema)
        return None

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def check_count(prompts: Sized) -> None:
    """Raise WrongError for more prompts than one request may have."""
    if len(prompts) > _MOST_PROMPTS:
        raise WrongError("prompt", f"{len(prompts)} prompts; at most {_MOST_PROMPTS} at a time")


def grammar_of(text: str) -> GrammarSource:
    """GBNF, or Lark where its mark says so."""
    return GrammarSource("lark" if text.lstrip().startswith(LARK_MARK) else "gbnf", text)


def _bias(value: float | bool) -> float:
    return float("-inf") if value is False else float(value)

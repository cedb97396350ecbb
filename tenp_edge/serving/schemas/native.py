"""llama-server's own requests."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, field_validator, model_validator

from tenp_edge.serving.schemas.generation import GenerationRequest, Whole, check_count
from tenp_edge.serving.schemas.refusing import Lenient
from tenp_edge.serving.schemas.wording import WrongError

_MOST_PROBABILITIES = 100
_PROMPTS = "text, a list of token numbers and texts, or a list of these"
Mixed = list[int | str]


class NativeRequest(GenerationRequest):
    """/completion."""

    prompt: str | Mixed | list[str | Mixed] = Field(description=_PROMPTS)
    n_probs: Whole | None = Field(None, ge=0, le=_MOST_PROBABILITIES)
    return_tokens: StrictBool | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """llama-server also takes {"prompt_string": ...}."""
        if isinstance(value, dict):
            if value.get("multimodal_data"):
                raise WrongError("prompt", "multimodal_data: this model reads text alone")
            return value.get("prompt_string", value)
        return value

    @model_validator(mode="after")
    def _possible(self) -> NativeRequest:
        if (self.n or 1) > 1:
            raise WrongError("n", "n: a prompt has one answer here; send a list of prompts")
        check_count(self.prompts())
        return self

    def prompts(self) -> list[str | Mixed]:
        """Every prompt: one, unless the list holds lists or texts alone."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        several = any(isinstance(part, list) for part in self.prompt) or (
            self.prompt and all(isinstance(part, str) for part in self.prompt)
        )
        prompts: list[Any] = list(self.prompt) if several else [self.prompt]
        return prompts


class TokenizeRequest(Lenient):
    """/tokenize."""

    content: str
    add_special: StrictBool = False
    parse_special: StrictBool = True
    with_pieces: StrictBool = False


class DetokenizeRequest(Lenient):
    """/detokenize."""

    tokens: list[int]

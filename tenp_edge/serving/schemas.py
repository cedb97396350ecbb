"""What a request may hold.

A field that would change the answer and is not understood is refused, not ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.serving.refusal import RefusalError

_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions alone.
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """``include_usage``: a last chunk without choices that has the counts."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(BaseModel):
    """The fields of both endpoints: OpenAI's, and llama.cpp's samplers."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    repeat_penalty: Finite | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)

    # Values of OpenAI's that change nothing here.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    # Only what says "off" is accepted of the following.
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, defaults: SamplingOptions) -> SamplingOptions:
        """``defaults`` of the server with what the request says."""
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.seed is not None:
            options["seed"] = self.seed % 2**64
        return replace(defaults, **{k: v for k, v in options.items() if v is not None})

    def wanted_tokens(self, limit: int) -> int:
        """Tokens to generate at most; ``limit`` is the server's limit."""
        return limit if self.max_tokens is None else self.max_tokens


class CompletionRequest(GenerationRequest):
    """/v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @field_validator("prompt")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """A list of prompts is accepted when it holds one."""
        if isinstance(value, list) and value and not isinstance(value[0], int):
            if len(value) > 1:
                raise ValueError(f"{len(value)} prompts; send one per request")
            return value[0]
        return value

    def wanted_tokens(self, limit: int) -> int:
        return (
            min(limit, _DEFAULT_COMPLETION_TOKENS) if self.max_tokens is None else self.max_tokens
        )


class TextPart(BaseModel):
    """Part of a message; images and sound are refused."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; what a client sends back of an earlier answer is accepted."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)

    def plain(self) -> dict[str, str]:
        """As chat templates know it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ResponseFormat(BaseModel):
    """Plain text is all there is."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """/v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def wanted_tokens(self, limit: int) -> int:
        return self.max_completion_tokens or super().wanted_tokens(limit)


def parse(kind: type[GenerationRequest], body: bytes) -> Any:
    """``body`` as ``kind``; raises RefusalError (400) with the first thing that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "json_invalid":
            raise RefusalError(
                400, f"the body is not JSON: {first['msg']}", "invalid_json"
            ) from None
        if first["type"] == "extra_forbidden":
            raise RefusalError(400, f"{where}: this field is not supported", None, where) from None
        message = f"{where}: {first['msg']}" if where else first["msg"]
        raise RefusalError(400, message, "invalid_value", where or None) from None

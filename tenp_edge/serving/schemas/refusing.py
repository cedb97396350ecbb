"""Fields of others that are refused.

Fields that are not known are ignored, as other servers do, where the answer is what was asked for
all the same. These ask for another answer: sound, calls, text of a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from tenp_edge.serving.schemas.wording import WrongError

# Values that ask for nothing, as clients send them that send every field.
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], ["text"])
_WRITES = "this model writes text alone"
_FORMS = "not a field of this server; try: response_format, which takes json_schema, regex, grammar"
_SEARCHES = "this server searches nothing; send what is known as a message"
_ENDS = "not a field of this server; try: stop, with text"
_EXCLUDES = "not a field of this server; try: logit_bias"

# Of OpenAI's, vLLM's and llama-server's APIs.
REFUSED: Mapping[str, str] = {
    "modalities": _WRITES,
    "audio": _WRITES,
    "image_data": "this model reads text alone",
    "functions": "tools replaced them; try: tools",
    "web_search_options": _SEARCHES,
    "mcp_servers": "this server calls nobody; try: tools, which the client runs",
    "lora": "no adapter is loaded: merge it into the checkpoint, then compress",
    "chat_template": "the file's own template is used alone; try: chat_template_kwargs, "
    "or /completion with a prompt that is rendered already",
    "guided_json": _FORMS,
    "guided_regex": _FORMS,
    "guided_choice": _FORMS,
    "guided_grammar": _FORMS,
    "structured_outputs": _FORMS,
    "stop_token_ids": _ENDS,
    "bad_words": _EXCLUDES,
    "allowed_token_ids": _EXCLUDES,
    "use_beam_search": "not built; answers are drawn token by token",
    "post_sampling_probs": "probabilities are told as they are before any sampler",
}


class Lenient(BaseModel):
    """A part of a request; what it does not know is ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), populate_by_name=True)


class Asked(Lenient):
    """A whole request; raises WrongError for a field that ``refused`` has a reason against."""

    refused: ClassVar[Mapping[str, str]] = REFUSED

    @model_validator(mode="before")
    @classmethod
    def _answerable(cls, fields: Any) -> Any:
        for name, why in cls.refused.items() if isinstance(fields, Mapping) else ():
            if fields.get(name) not in _NOTHING:
                raise WrongError(name, f"{name}: {why}")
        return fields

"""Messages in the words of the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_template import PROCESS, TemplateError
from tenp_edge.runtime.vocabulary import Vocabulary

Message = Mapping[str, Any]


def render_chat(
    vocabulary: Vocabulary, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
) -> str:
    """``messages`` ({"role", "content"}) as the model expects them, ready for its answer.

    ``variables``: what else the template is to know, such as ``enable_thinking``.

    The template comes from a file that anyone may have made, so it runs in Jinja's sandbox, in a
    process of its own with limits. Raises UserError when the file has none, when it refuses the
    messages, and when it reaches a limit.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError("the file has no chat template", "run it with --raw")
    known = {
        **(variables or {}),
        "messages": list(messages),
        **template_facts(vocabulary),
    }
    try:
        return PROCESS.render(template, known)
    except TemplateError as error:
        raise refused(error) from None


def template_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    """What every template is told beside the messages."""
    return {
        "add_generation_prompt": True,
        "bos_token": _text(vocabulary, vocabulary.bos),
        "eos_token": _text(vocabulary, vocabulary.eos),
    }


def refused(error: TemplateError | None) -> UserError:
    """Why a template did not render its messages."""
    return UserError(
        f"the chat template cannot render these messages: {error}",
        "user and assistant in turn, beginning with user",
    )


def _text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.detokenize([token])

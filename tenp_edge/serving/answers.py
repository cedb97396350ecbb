"""The JSON that goes back: whole answers, and a chunk per token."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from tenp_edge.runtime.generation import Piece
from tenp_edge.version import __version__

Body = dict[str, Any]
DONE = "data: [DONE]\n\n"


class Answer:
    """One answer in the making. ``chat`` picks the spelling of the endpoint."""

    def __init__(self, model: str, prompt_tokens: int, chat: bool, with_usage: bool) -> None:
        self._model, self._prompt_tokens, self._chat = model, prompt_tokens, chat
        self._with_usage = with_usage
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._texts: list[str] = []
        self._tokens, self._finish = 0, "stop"

    def add(self, piece: Piece) -> None:
        """Count one token."""
        self._texts.append(piece.text)
        self._tokens += 1
        self._finish = piece.finish or self._finish

    def chunk(self, piece: Piece) -> Body:
        """What a stream says about ``piece``, which was `add`ed."""
        if self._chat:
            delta = {"content": piece.text}
            if self._tokens == 1:
                delta = {"role": "assistant", **delta}
            choice: Body = {"index": 0, "delta": delta}
        else:
            choice = {"index": 0, "text": piece.text}
        choice |= {"logprobs": None, "finish_reason": piece.finish}
        usage = {"usage": None} if self._with_usage else {}
        return {**self._head(".chunk"), "choices": [choice], **usage}

    def usage_chunk(self) -> Body:
        """The last chunk of a stream that was asked for counts."""
        return {**self._head(".chunk"), "choices": [], "usage": self._usage()}

    def whole(self) -> Body:
        """The answer in one piece."""
        text = "".join(self._texts)
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self._finish}
        return {**self._head(""), "choices": [choice], "usage": self._usage()}

    def _head(self, suffix: str) -> Body:
        return {
            "id": self._id,
            "object": f"chat.completion{suffix}" if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": f"tenp-edge-{__version__}",
        }

    def _usage(self) -> Body:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": self._prompt_tokens + self._tokens,
        }


def event(body: Body) -> str:
    """``body`` as a server-sent event."""
    return f"data: {json.dumps(body)}\n\n"

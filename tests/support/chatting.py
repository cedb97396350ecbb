"""Tiny files that converse, and what their runtimes evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from support import tiny
from support.gguf_cases import export

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.session import Session

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(directory: Path, family: str, template: str | None = TEMPLATE) -> Path:
    """A tiny random checkpoint that knows 8192 tokens, with ``template``."""
    model = tiny.make(directory, family, max_position_embeddings=8192)
    if template is not None:
        settings = model / "tokenizer_config.json"
        raw = json.loads(settings.read_text()) | {"chat_template": template}
        settings.write_text(json.dumps(raw))
    return model


def make_file(directory: Path, template: str | None = TEMPLATE) -> Path:
    """A per-expert file of a tiny random model that knows 8192 tokens, with ``template``."""
    model = make_model(directory / "model", "mixtral", template)
    file = directory / "chat.gguf"
    export(ModelSource(Checkpoint(model)), file, "F32", "per-expert")
    return file


@contextmanager
def counting(session: Session) -> Iterator[list[int]]:
    """Prompt tokens that are evaluated meanwhile, call by call."""
    counts: list[int] = []
    evaluate = session.evaluate

    def counted(tokens: list[int]) -> np.ndarray:
        if len(tokens) > 1:
            counts.append(len(tokens))
        return evaluate(tokens)

    with patch.object(session, "evaluate", counted):
        yield counts

"""Whether an exported model says how a conversation is written."""

from __future__ import annotations

from tenp_edge.runtime.directory_vocabulary import read_settings
from tenp_edge.runtime.gguf.header import read_fields
from tenp_edge.runtime.locating import Found


def has_chat_template(located: Found) -> bool:
    """Whether the model at ``located``, a GGUF or an ONNX directory, has a chat template."""
    if located.kind == "gguf":
        return "tokenizer.chat_template" in read_fields(located.path)
    settings = read_settings(located.path / "tokenizer_config.json")
    return (located.path / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))

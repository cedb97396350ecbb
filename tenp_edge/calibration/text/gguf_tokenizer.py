"""The tokenizer of a GGUF as text is read with here: in the manner of transformers' tokenizers, by
llama.cpp, with the chat template that the file brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenp_edge.runtime.chat_template import PROCESS
from tenp_edge.runtime.llamacpp.vocabulary_file import open_tokenizer


class GgufTokenizer:
    """What of transformers' tokenizers sampling, conversations and validation use.

    Raises UserError for a file without a usable tokenizer.
    """

    def __init__(self, file: Path) -> None:
        self._model = open_tokenizer(file)
        self._vocabulary = self._model.vocabulary
        self.chat_template = self._vocabulary.chat_template
        self.bos_token_id, self.eos_token_id = self._vocabulary.bos, self._vocabulary.eos

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._vocabulary.tokenize(text, add_special=add_special_tokens)}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The text of ``ids``, control tokens written out."""
        return self._vocabulary.detokenize(ids)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        tokenize: bool = False,
    ) -> str:
        """The text of a conversation. Raises TemplateError where the template refuses it."""
        assert not tokenize and self.chat_template is not None
        variables = {
            "messages": list(messages),
            "tools": tools,
            "add_generation_prompt": False,
            "bos_token": self._written(self.bos_token_id),
            "eos_token": self._written(self.eos_token_id),
        }
        return PROCESS.render(self.chat_template, variables)

    def _written(self, token: int | None) -> str:
        return "" if token is None else self._vocabulary.detokenize([token])

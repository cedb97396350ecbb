"""The tokenizer of a GGUF file in llama.cpp, without its weights."""

from __future__ import annotations

import mmap
from pathlib import Path

from tenp_edge.runtime.gguf.header import Header, mapped, parse_header
from tenp_edge.runtime.gguf.tokenizer_file import tokenizer_file
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary
from tenp_edge.runtime.llamacpp.model import LlamaCppModel


def vocabulary_model(header: Header, memory: mmap.mmap) -> LlamaCppModel:
    """The tokenizer in ``memory``, a file whose header is ``header``; close it when done."""
    with tokenizer_file(header, memory) as file:
        return LlamaCppModel(file, vocab_only=True, name=header.file)


def open_tokenizer(file: Path) -> LlamaCppModel:
    """The tokenizer of ``file``. Raises UserError where it has none, or a broken one."""
    with mapped(file) as memory:
        header = parse_header(memory, len(memory), file.name)
        check_vocabulary(header)
        return vocabulary_model(header, memory)

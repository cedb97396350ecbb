"""The tokenizer of a per-expert file, as a file that llama.cpp loads: its metadata alone, under the
architecture's name that llama.cpp knows.

    general.architecture = tenp-qwen3moe    ->  general.architecture = qwen3moe
    tenp-qwen3moe.context_length            ->  qwen3moe.context_length
    tokenizer.ggml.pre = gpt-4o             ->  tokenizer.ggml.pre = granite-embed-multi-97m
    tenp.*, split.*, the tensors            ->  left out

Without the tensors for a second reason: llama.cpp would compare every tensor's name with every
other (5 s for 18,000 of them).
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenp_edge.runtime.gguf.file_origin import OWN
from tenp_edge.runtime.gguf.header import Header

_ARCHITECTURE, _SPLITTER = "general.architecture", "tokenizer.ggml.pre"
# llama.cpp's gpt-4o cuts combining marks from their letters (docs/formats/tokenizers.md). The same
# expressions without that fault have another name, which older releases of llama.cpp do not know:
# not for files that go elsewhere.
_REPAIRED = {"gpt-4o": "granite-embed-multi-97m"}
_LEFT_OUT = ("tenp.", "split.")
_STRING = 8
_DESCRIPTORS = Path("/dev/fd")


@contextmanager
def tokenizer_file(header: Header, memory: mmap.mmap) -> Iterator[Path]:
    """That file, made of ``memory``, whose header is ``header``; gone when the body ends.

    Where the system lets an open file be named it has no other name, so that it is gone too when
    the process is killed.
    """
    if _DESCRIPTORS.is_dir():
        with tempfile.TemporaryFile() as stream:
            stream.writelines(_parts(header, memory))
            stream.flush()
            yield _DESCRIPTORS / str(stream.fileno())
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / header.file
        with file.open("wb") as stream:
            stream.writelines(_parts(header, memory))
        yield file


def _parts(header: Header, memory: mmap.mmap) -> Iterator[bytes | memoryview]:
    """Its bytes, one field after the other; a vocabulary is not copied."""
    architecture = str(header.fields[_ARCHITECTURE])
    name = architecture.removeprefix(OWN)
    splitter = _REPAIRED.get(str(header.fields.get(_SPLITTER)))
    kept = {key: span for key, span in header.spans.items() if not key.startswith(_LEFT_OUT)}
    yield memory[:8] + struct.pack("<QQ", 0, len(kept))
    with memoryview(memory) as view:
        for key, (start, end) in kept.items():
            if key == _ARCHITECTURE:
                yield string(key) + struct.pack("<I", _STRING) + string(name)
            elif key == _SPLITTER and splitter is not None:
                yield string(key) + struct.pack("<I", _STRING) + string(splitter)
            elif key.startswith(f"{architecture}."):
                yield string(name + key.removeprefix(architecture))
                yield view[start + len(string(key)) : end]
            else:
                yield view[start:end]


def string(text: str) -> bytes:
    """``text`` as GGUF stores it."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw

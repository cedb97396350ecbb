"""Metadata of a file that is made of another GGUF: the source's, with ours where they are ours.

general.*     the source's; what the file is and its type are ours
ARCH.*        ours: of the model as it is now, with the widths that it has
tokenizer.*   the source's, byte for byte
tenp.*        ours
split.*, quantize.*, general.alignment   left out: they say how the source's bytes lie or came
              to be
any other     the source's
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tenp_edge.exporters.gguf.fields import Field
from tenp_edge.exporters.gguf.source.parts import open_parts
from tenp_edge.runtime.gguf.header import mapped

_LEFT_OUT = ("split.", "quantize.", "tenp.", "general.alignment")
_NAMED = "general."
_FILE_TYPE = "general.file_type"
_OWN = frozenset(
    ("general.architecture", "general.type", _FILE_TYPE, "general.quantization_version")
)


def with_source_fields(
    path: Path, ours: Sequence[Field], *, same_types: bool = False
) -> list[Field]:
    """``ours`` (every field but the tokenizer's) with those of the GGUF ``path``; its file type too
    where the tensors keep their types."""
    theirs = dict(_source_fields(path, _stamp(path)))
    own = _OWN - {_FILE_TYPE} if same_types else _OWN
    made = [
        (key, theirs.get(key, value) if key.startswith(_NAMED) and key not in own else value)
        for key, value in ours
    ]
    known = {key for key, _ in made}
    return made + [field for field in theirs.items() if field[0] not in known]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=2)
def _source_fields(path: Path, stamp: tuple[int, int]) -> tuple[Field, ...]:
    """Those that may be kept, encoded as they are."""
    del stamp  # part of the key only: a changed file is read again
    header = open_parts(path).header
    architecture = f"{header.fields['general.architecture']}."
    with mapped(path) as memory:
        return tuple(
            (key, memory[start + 8 + len(key.encode()) : end])
            for key, (start, end) in header.spans.items()
            if not key.startswith((*_LEFT_OUT, architecture))
        )

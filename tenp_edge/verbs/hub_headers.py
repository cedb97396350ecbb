"""The headers of a model on the hub, without its weights: what plans are made of.

The small files are fetched; of a file of weights only the header, by ranged reads. What lies in the
directory then looks like the model to whoever reads no weights: the rest of each file is a hole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.gguf.header import parse_header

_SMALL = "*.json *.txt *.model tokenization_*.py *.jinja".split()
_MOST_SMALL_BYTES = 64 * 2**20
_FIRST_BYTES, _MOST_HEADER_BYTES = 2**20, 256 * 2**20
_SECONDS = 15.0


@dataclass(frozen=True)
class Fetched:
    """``path``: a directory of headers, or one GGUF. ``read_bytes``: that were really read."""

    path: Path
    read_bytes: int


def fetch_headers(
    name: str, directory: Path, file: str | None = None, revision: str | None = None
) -> Fetched:
    """The headers of the hub's model ``name`` in ``directory``, of its GGUF ``file`` if named.

    Raises UserError where the hub cannot be reached, and where it has no such model or no weights
    that can be read.
    """
    try:
        return _fetch(name, directory, file, revision)
    except UserError:
        raise
    except Exception as error:  # the hub client's errors share no base class
        raise _unreachable(name, error) from error


def _fetch(name: str, directory: Path, file: str | None, revision: str | None) -> Fetched:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or ()}
    weights = [file for file in sizes if fnmatchcase(file, "*.safetensors") and "/" not in file]
    revision, read = info.sha, 0
    if file is not None:
        sizes = {one: size for one, size in sizes.items() if one == file}
    if not weights or file is not None:
        return _fetch_gguf(name, revision, sizes, directory, file)
    for small in _small_files(sizes):
        hf_hub_download(name, small, revision=revision, local_dir=directory)
        read += sizes[small]
    for shard in weights:
        start = _Start(name, shard, revision)
        length = 8 + struct.unpack("<Q", start.first(8))[0]
        header = start.first(min(length, _MOST_HEADER_BYTES))
        _write_hole(directory / shard, header, sizes[shard])
        read += start.read
    return Fetched(directory, read)


def _small_files(sizes: dict[str, int]) -> list[str]:
    return [
        file
        for file, size in sizes.items()
        if any(fnmatchcase(file, pattern) for pattern in _SMALL)
        and "/" not in file
        and size <= _MOST_SMALL_BYTES
    ]


def _fetch_gguf(
    name: str, revision: str | None, sizes: dict[str, int], directory: Path, wanted: str | None
) -> Fetched:
    """The largest GGUF: the one that has lost least; or the only one of ``sizes``, ``wanted``."""
    if wanted is not None and not sizes:
        raise UserError(f"{name} has no file {wanted}", f"{name}/FILE.gguf")
    files = [file for file in sizes if file.lower().endswith(".gguf") and "mmproj" not in file]
    if not files:
        raise UserError(
            f"{name} has no safetensors and no GGUF", "the repository of the original model"
        )
    file = max(files, key=lambda one: sizes[one])
    start, target = _Start(name, file, revision), directory / Path(file).name
    count = _FIRST_BYTES
    while True:
        data = start.first(min(count, sizes[file]))
        if _is_whole_header(data, sizes[file]) or count >= min(sizes[file], _MOST_HEADER_BYTES):
            break
        count *= 4
    _write_hole(target, data, sizes[file])
    return Fetched(target, start.read)


def _is_whole_header(data: bytes, file_bytes: int) -> bool:
    try:
        parse_header(data, file_bytes)
    except UserError:
        return False
    return True


class _Start:
    """The start of a file on the hub. ``read``: bytes that came."""

    def __init__(self, name: str, file: str, revision: str | None) -> None:
        self._name, self._file, self._revision = name, file, revision
        self._known = bytearray()
        self.read = 0

    def first(self, count: int) -> bytes:
        """The first ``count`` bytes of the file."""
        if len(self._known) < count:
            self._fetch(max(count, _FIRST_BYTES))
        if len(self._known) < count:
            message = f"{self._file} of {self._name} is cut short on the hub"
            raise UserError(message, "another revision")
        return bytes(self._known[:count])

    def _fetch(self, wanted: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        url = hf_hub_url(self._name, self._file, revision=self._revision)
        # What is read raw must not come compressed.
        asked = {"range": f"bytes=0-{wanted - 1}", "accept-encoding": "identity"}
        session: Any = get_session()
        options = {"headers": {**build_hf_headers(), **asked}, "timeout": _SECONDS}
        with session.stream("GET", url, **options, follow_redirects=True) as response:
            hf_raise_for_status(response)
            self._known.clear()
            for part in response.iter_raw():
                self._known.extend(part)
                self.read += len(part)
                if len(self._known) >= wanted:  # a server may not know ranges
                    break


def _write_hole(target: Path, head: bytes, size: int) -> None:
    """``head``, and a hole behind it: no disk is taken for it."""
    with target.open("wb") as stream:
        stream.write(head)
        stream.truncate(size)


def _unreachable(name: str, error: Exception) -> UserError:
    kind = type(error).__name__
    if kind == "RevisionNotFoundError":
        return UserError(f"{name} has no such revision", "a branch, tag or commit of the hub")
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return UserError(
            f"the hub shows no model {name} (none of that name, or not without a login)",
            "its exact name, or hf auth login",
        )
    return UserError(
        f"{name} is not a directory here and the hub cannot be reached ({kind})",
        "a model directory or a GGUF file that is here",
    )

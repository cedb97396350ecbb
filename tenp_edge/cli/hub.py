"""A model given by its Hugging Face id: fetched if there is a network, explained if there is not.

Local directories are the normal case; nothing else in the tool touches a network.
"""

from __future__ import annotations

import re
from pathlib import Path

from tenp_edge.checkpoint.model_origin import DEMO, bundled
from tenp_edge.errors import UserError

_NAME = r"[A-Za-z0-9][\w.-]*"
# OWNER/NAME, perhaps a file of it (a GGUF), perhaps a branch, tag or commit.
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:/([\w./-]+\.gguf))?(?:@([\w./-]+))?")
# Weights, config, tokenizer and licence; not pickles, not other formats of the same weights. Of the
# code only a tokenizer's, which is read (runtime/tiktoken.py), not run.
_FILES = ("*.safetensors *.json *.txt *.model tokenization_*.py *.jinja LICENSE* README.md").split()
# The same weights again: in the publisher's own form, for other programs.
_NOT = ("*/*.safetensors */*.json */*.txt */*.model consolidated*.safetensors").split()


def spelled(name: str) -> tuple[str, str | None, str | None] | None:
    """Repository, file and revision of the hub that ``name`` could be; None for what is no id."""
    match = _HUB_ID.fullmatch(name)
    return None if match is None else (match[1], match[2], match[3])


def local_model(model: Path) -> Path:
    """``model`` itself when it exists; else the bundled model (``demo``), or the snapshot of the
    hub id that it spells: OWNER/NAME, OWNER/NAME@REVISION, or a file, OWNER/NAME/FILE.gguf.

    Raises UserError when it is none of them, or when the hub cannot be reached.
    """
    name = model.as_posix()
    if name == DEMO and not model.exists():
        return bundled()
    where = None if model.exists() else spelled(name)
    if where is None:
        return model
    repository, file, revision = where
    try:
        return _fetched(repository, file, revision)
    except Exception as error:  # the hub client's errors share no base class
        raise _refusal(error, repository, file, revision) from error


def _fetched(repository: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if file is not None:
        return Path(hf_hub_download(repository, file, revision=revision))
    return Path(
        snapshot_download(
            repository, revision=revision, allow_patterns=_FILES, ignore_patterns=_NOT
        )
    )


def _refusal(
    error: Exception, repository: str, file: str | None, revision: str | None
) -> UserError:
    kind = type(error).__name__
    if kind == "RevisionNotFoundError":
        return UserError(
            f"{repository} has no revision '{revision or 'main'}'",
            f"a branch, tag or commit that the hub shows; {repository} is the newest",
        )
    if file is not None and kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return UserError(f"{repository} has no file {file}", f"{repository}/FILE.gguf")
    there = f" --revision {revision}" if revision else ""
    only = f" {file}" if file else ""
    return UserError(
        f"{repository} is not a directory here and could not be fetched from the hub ({kind})",
        f"on a machine with network: hf download {repository}{only}{there} --local-dir DIR; then "
        "pass DIR",
    )


_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)$")


def spoken(model: Path) -> str:
    """What to type for ``model``: the name that `local_model` makes this path of, or the path. Of a
    snapshot that is not the cache's newest, with its commit."""
    if model == bundled():
        return str(model) if Path(DEMO).exists() else DEMO
    cached = _SNAPSHOT.search(model.as_posix())
    if cached is None:
        return str(model)
    owner, name, commit = cached.groups()
    main = model.parents[1] / "refs" / "main"
    is_newest = main.is_file() and main.read_text(encoding="utf-8").strip() == commit
    return f"{owner}/{name}" + ("" if is_newest else f"@{commit}")

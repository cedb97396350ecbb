"""A model given by its Hugging Face id: fetched if there is a network, explained if there is not.

Local directories are the normal case; nothing else in the tool touches a network.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from tenp_edge.errors import UserError

DEMO = "demo"  # what the bundled model is called wherever a model is taken
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights, config, tokenizer and licence; not pickles, not other formats of the same weights. Of the
# code only a tokenizer's, which is read (runtime/tiktoken.py), not run.
_FILES = ("*.safetensors *.json *.txt *.model tokenization_*.py *.jinja LICENSE* README.md").split()


def bundled() -> Path:
    """The model that comes with the package."""
    return Path(str(files("tenp_edge") / "demo_model"))


def local_model(model: Path) -> Path:
    """``model`` itself when it exists; else the bundled model (``demo``), or the snapshot of the
    hub id it spells.

    Raises UserError when it is none of them, or when the hub cannot be reached.
    """
    name = model.as_posix()
    if name == DEMO and not model.exists():
        return bundled()
    if model.exists() or not _HUB_ID.fullmatch(name):
        return model
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub client's errors share no base class
        raise UserError(
            f"{name} is not a directory here and could not be fetched from the hub "
            f"({type(error).__name__})",
            f"on a machine with network: hf download {name} --local-dir DIR; then pass DIR",
        ) from error


_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[^/]+$")


def spoken(model: Path) -> str:
    """What to type for ``model``: the name that `local_model` made this path of, or the path."""
    if model == bundled():
        return DEMO
    cached = _SNAPSHOT.search(model.as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else str(model)

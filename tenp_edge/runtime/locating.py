"""What a path holds: a GGUF file, an ONNX directory, a checkpoint, or all that `compress` wrote.

OUT/model.gguf  or  OUT/onnx/     the exported model, which runs
OUT/checkpoint/                   the pruned checkpoint it was made from, which does not
"""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tenp_edge.errors import UserError
from tenp_edge.runtime.onnx.directory import holds_onnx

GGUF, ONNX, CHECKPOINT = "model.gguf", "onnx", "checkpoint"
_CONFIG, _RECORD = "config.json", "manifest.json"
_WANTED = "the path of a GGUF file, an ONNX directory, or what compress wrote"


@dataclass(frozen=True)
class Found:
    """The model at a path: a GGUF file, or the directory of an ONNX model or a checkpoint."""

    kind: Literal["gguf", "onnx", "checkpoint"]
    path: Path


def locate(path: Path) -> Found:
    """The model at ``path``: itself, or what lies in it, the exported model before the checkpoint.

    Raises UserError where there is none, and where there are several to choose from.
    """
    if path.suffix == ".onnx":
        return Found("onnx", path)
    if not path.exists():
        raise UserError(f"{path} does not exist", _WANTED)
    if not path.is_dir():
        return Found("gguf", path)
    if holds_onnx(path):
        return Found("onnx", path)
    if (path / _CONFIG).is_file():
        return Found("checkpoint", path)
    exported = _exported(path)
    if exported is not None:
        return exported
    if (path / CHECKPOINT / _CONFIG).is_file():
        return Found("checkpoint", path / CHECKPOINT)
    raise _nothing(path)


def runnable(path: Path) -> Path:
    """What `run`, `serve` and `bench` open for ``path``. Raises UserError as `locate`, and for a
    checkpoint, with what makes it run."""
    located = locate(path)
    if located.kind != "checkpoint":
        return located.path
    raise _checkpoint_only(path) if located.path != path else _checkpoint(path)


def _exported(directory: Path) -> Found | None:
    """The exported model in ``directory``: under the names that `compress` gives, or the only one.
    None where there is none."""
    if (directory / GGUF).is_file():
        return Found("gguf", directory / GGUF)
    if holds_onnx(directory / ONNX):
        return Found("onnx", directory / ONNX)
    others = sorted(directory.iterdir())
    models = [Found("gguf", file) for file in others if file.suffix == ".gguf" and file.is_file()]
    models += [Found("onnx", other) for other in others if holds_onnx(other)]
    if len(models) > 1:
        names = ", ".join(one.path.name for one in models)
        raise UserError(f"{directory} holds {len(models)} models: {names}", str(models[0].path))
    return models[0] if models else None


# -- why there is none -----------------------------------------------------------------------------


def _nothing(directory: Path) -> UserError:
    if (directory / _RECORD).is_file():
        return UserError(
            f"{directory} holds no finished model yet",
            "the tenp-edge compress command that began it: it continues where it stopped",
        )
    return UserError(
        f"{directory} holds no model: no {GGUF}, no {ONNX}/, no {CHECKPOINT}/", _WANTED
    )


def _checkpoint_only(directory: Path) -> UserError:
    """`directory` is an output of `compress`, of which only the checkpoint is there."""
    checkpoint, target = (shlex.quote(str(directory / name)) for name in (CHECKPOINT, GGUF))
    return UserError(
        f"{directory} holds a checkpoint, but no {GGUF} and no {ONNX}/ to run",
        f"tenp-edge export {checkpoint} -o {target}",
    )


def _checkpoint(directory: Path) -> UserError:
    """`directory` is a checkpoint itself: a pruned one, or a model as it was downloaded."""
    what = f"{directory} is a Hugging Face checkpoint: tenp-edge runs GGUF files and ONNX"
    if not _is_pruned(directory):
        return UserError(
            what, f"tenp-edge compress {shlex.quote(str(directory))} --ram 8GiB -o OUT"
        )
    with suppress(UserError):
        exported = _exported(directory.resolve().parent)
        if exported is not None:
            return UserError(what, f"{exported.path}, which was made from it")
    return UserError(what, f"tenp-edge export {shlex.quote(str(directory))} -o {GGUF}")


def _is_pruned(checkpoint: Path) -> bool:
    with suppress(OSError, ValueError):
        raw: Any = json.loads((checkpoint / _CONFIG).read_text(encoding="utf-8"))
        return isinstance(raw, dict) and "tenp" in raw
    return False

"""Weights that took the place of a pruned model's own: what repair and healing leave behind.

A directory holds mended.json (how they were made, what it gained) and one safetensors file a layer,
its tensors under their on-disk names in the *pruned* model and in the checkpoint's dtype. They are
read one at a time, where a `ModelSource` would have read the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tenp_edge.checkpoint.files import read_stored
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.models.headers import read_header

FILE, DIRECTORY = "mended.json", "mended"
FORMAT, VERSION = "tenp-edge mended weights", 1
_HASH_BYTES = 2**20


class Overlay(Protocol):
    """Tensors by on-disk name that go before those of the checkpoint."""

    @property
    def digest(self) -> str: ...

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str) -> torch.Tensor: ...


class Mended:
    """The mended tensors in ``directory``. ``info``: mended.json.

    Raises UserError when it holds none, or not all that it lists.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.info = directory, read_json(directory / FILE)
        if self.info.get("format") != FORMAT or self.info.get("version") != VERSION:
            raise UserError(
                f"{directory / FILE} is not of mended weights of version {VERSION}",
                "compress again",
            )
        layers = self.info.get("layers")
        digests = (self.info.get(key) for key in ("digest", "plan_digest"))
        if (
            not isinstance(layers, dict)
            or not all(layer.isdecimal() for layer in layers)
            or not all(isinstance(digest, str) for digest in digests)
        ):
            raise UserError(f"{directory / FILE} is damaged", "compress again")
        self._stored = {
            name: stored
            for layer in layers
            for name, stored in read_header(layer_file(directory, int(layer))).items()
        }

    @property
    def files(self) -> list[Path]:
        """mended.json and the files of all layers."""
        layers = [layer_file(self.directory, int(layer)) for layer in self.info["layers"]]
        return [self.directory / FILE, *layers]

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        return str(self.info["digest"])

    @property
    def plan_digest(self) -> str:
        """Of the plan whose pruned model they belong to."""
        return str(self.info["plan_digest"])

    def check(self) -> None:
        """Raise UserError unless the weights are those that were written; reads them all."""
        if files_digest(self.files[1:]) != self.digest:
            raise UserError(
                f"the mended weights in {self.directory} are damaged: their bytes are not those "
                "that were written",
                "the same compress command: it mends again",
            )

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` in its stored dtype."""
        return read_stored(self._stored[name])


class LayerChanges:
    """The changes of the layer that is being mended, in memory."""

    digest = ""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def layer_file(directory: Path, layer: int) -> Path:
    """Where the mended tensors of ``layer`` lie."""
    return directory / f"layer-{layer}.safetensors"


def model_digest(plan_digest: str, mended: Overlay | None) -> str:
    """Identity of a pruned model's weights: the plan's digest, unless they were mended."""
    if mended is None:
        return plan_digest
    return hashlib.sha256(f"{plan_digest} {mended.digest}".encode()).hexdigest()[:32]


def files_digest(files: Iterable[Path]) -> str:
    """Of the bytes of ``files``, in order."""
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_HASH_BYTES):
                state.update(block)
    return state.hexdigest()[:32]


def found_mended(directory: Path, plan_digest: str, digest: str) -> Mended | None:
    """What lies in ``directory`` if it makes the model ``digest`` of that plan; else None."""
    try:
        mended = Mended(directory)
        mended.check()
    except (UserError, OSError, KeyError):
        return None
    same = mended.plan_digest == plan_digest and model_digest(plan_digest, mended) == digest
    return mended if same else None


def settings_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """What changed the weights, for config.json."""
    settings = {"repair": info["repair"], "heal": info["heal"]}
    return settings | ({"repair_ridge": info["repair_ridge"]} if info["repair"] else {})

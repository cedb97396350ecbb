"""What a model says without reading a weight: config.json and safetensors headers, or the header of
a file of another format.

No torch in here: `inspect` of a directory answers from this module alone, sooner than torch can be
imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError, shown
from tenp_edge.models import FAMILIES, ModelConfig, read_config
from tenp_edge.models.layouts import PartRule, StoredWeight
from tenp_edge.models.other_formats import OpenedSource, open_file
from tenp_edge.models.quantization import ORIGINAL, quantised_layouts, with_modelopt
from tenp_edge.models.safetensors_header import DTYPE_BYTES, StoredTensor, read_header
from tenp_edge.models.stored_weights import StackedExperts, WeightIndex
from tenp_edge.models.wrapper import kinds_text, left_out_kinds

__all__ = ["DTYPE_BYTES", "INDEX_NAME", "ModelFiles", "StoredTensor", "read_header"]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# More tensors than this are only listed where as many are stored.
_MANY_TENSORS = 200_000
_SAMPLES_PER_FILE = 64
_PREFIX = "model."  # of the language model's tensors, everywhere but in a wrapped one's files


class ModelFiles:
    """A model directory, or a file of another format (GGUF), opened by header: its config, and
    where every tensor lies.

    Raises UserError when the directory, the config or the set of tensors cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, opened = _model_at(Path(path))
        self.is_file = opened is not None
        if opened is None:
            raw = with_modelopt(read_json(self.path / "config.json"), self.path)
            config = read_config(raw, FAMILIES)
            stored = _read_index(self.path)
            config = replace(config, stored_prefix=_prefix(config, stored))
            tensors = _named_as_text_model(stored, config)
        else:
            config, tensors = opened.config, opened.tensors
        self.config: ModelConfig = config
        self.tensors: Mapping[str, StoredTensor] = tensors
        self._index = opened or WeightIndex(config, tensors, quantised_layouts(config.raw))
        self._check_number()
        self._check()

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model: config, headers, and a sample of every file's bytes."""
        digest = hashlib.sha256(json.dumps(self.config.raw, sort_keys=True).encode())
        by_file: dict[Path, list[StoredTensor]] = {}
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}{tensor.dtype}{tensor.shape}".encode())
            by_file.setdefault(tensor.file, []).append(tensor)
        for file, tensors in by_file.items():
            with file.open("rb", buffering=0) as stream:
                for tensor in tensors[:: max(1, len(tensors) // _SAMPLES_PER_FILE)]:
                    stream.seek(tensor.offset + tensor.nbytes // 2)
                    digest.update(stream.read(min(64, tensor.nbytes // 2)))
        return digest.hexdigest()[:32]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stored tensors that are not part of the language model (vision, MTP layers)."""
        return tuple(sorted(self._index.unclaimed - self._index.needless))

    @property
    def needless(self) -> frozenset[str]:
        """Tensors beside quantised weights that change nothing in them: scales of activations."""
        return self._index.needless

    @property
    def left_out_text(self) -> str:
        """`left_out` by kind and number, for people; empty where nothing is."""
        return kinds_text(left_out_kinds(self.left_out))

    def is_fused(self, layer: int) -> bool:
        """Whether the layer's experts are stored stacked (gate_up_proj, down_proj)."""
        return layer in self.stacked

    @property
    def stacked(self) -> Mapping[int, StackedExperts]:
        """The layers whose experts are stored stacked."""
        return self._index.stacked

    @property
    def weights(self) -> Mapping[str, StoredWeight]:
        """Every weight that the config implies, stacked where the files are, and where it lies."""
        return self._index.weights

    def stored_bytes(self, weight: StoredWeight) -> int:
        """Bytes of all tensors that ``weight`` is stored as."""
        return sum(self.tensors[name].nbytes for name in weight.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes that all weights are stored in."""
        return sum(map(self.stored_bytes, self.weights.values()))

    # -- checks --------------------------------------------------------------------------------

    def _check_number(self) -> None:
        """A config.json of any size must not be listed before it is compared with the files."""
        config = self.config
        apart = sum(
            len(row) for layer, row in config.expert_widths.items() if layer not in self.stacked
        )
        min_tensors = 2 * config.num_hidden_layers + len(config.family.matrices) * apart
        if min_tensors > max(_MANY_TENSORS, len(self.tensors)):
            raise UserError(
                f"config.json implies {min_tensors} tensors or more, the checkpoint has "
                f"{len(self.tensors)}",
                "the config.json that belongs to the checkpoint",
            )

    def _check(self) -> None:
        claimed = [name for weight in self.weights.values() for name in weight.tensors.values()]
        missing = [name for name in claimed if name not in self.tensors]
        if missing:
            raise UserError(
                f"config.json implies {len(claimed)} tensors, {len(missing)} of them are "
                f"not in the checkpoint; the first is {missing[0]}",
                "check that every shard is there and that config.json belongs to them",
            )
        for weight in self.weights.values():
            for name, rule in weight.parts():
                self._check_part(name, rule)
        for name in sorted(self._index.not_understood):
            raise UserError(
                f"{shown(name)} lies beside a quantised weight, and what it does to it is not "
                "known",
                ORIGINAL,
            )

    def _check_part(self, name: str, rule: PartRule) -> None:
        stored = self.tensors[name]
        if stored.dtype not in rule.dtypes:
            quantised = self.config.raw.get("quantization_config")
            reason = (
                "quantization_config and the tensors beside it do not say how to read it"
                if quantised
                else "weights must be BF16, F16 or F32"
            )
            raise UserError(f"{name} is stored as {stored.dtype}; {reason}", ORIGINAL)
        if stored.shape not in rule.shapes:
            raise UserError(
                f"{name} has shape {list(stored.shape)}, config.json implies "
                f"{list(rule.shapes[0])}",
                "check that config.json belongs to this checkpoint",
            )


def _prefix(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> str:
    """What the names begin with: the one of those that the family has which is there."""
    legal = config.family.stored_prefixes
    if len(legal) == 1:
        return config.stored_prefix
    return next((p for p in legal if any(n.startswith(p) for n in tensors)), legal[0])


def _named_as_text_model(
    tensors: Mapping[str, StoredTensor], config: ModelConfig
) -> Mapping[str, StoredTensor]:
    """``tensors`` under the names that a wrapped language model has on its own."""
    prefix = config.stored_prefix
    if prefix == _PREFIX:
        return tensors
    renamed = {config.text_name(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise UserError(
            f"the checkpoint has tensors both of {prefix}* and of {_PREFIX}* by the same names",
            "the checkpoint as it was published",
        )
    return renamed


def _model_at(path: Path) -> tuple[Path, OpenedSource | None]:
    """``path`` itself, or the checkpoint inside an output directory of ``compress``; and what a
    file holds."""
    if (path / "checkpoint" / "config.json").is_file() and not (path / "config.json").is_file():
        return path / "checkpoint", None
    if path.is_dir():
        return path, None
    opened = open_file(path) if path.is_file() else None
    if opened is None:
        raise UserError(
            f"{path} is not a model directory or a GGUF file",
            "the path of a downloaded checkpoint",
        )
    return path, opened


def _read_index(path: Path) -> dict[str, StoredTensor]:
    index_file = path / INDEX_NAME
    if index_file.is_file():
        return _read_sharded(path, read_json(index_file))
    if (path / WEIGHTS_NAME).is_file():  # What else is there is other tools' (consolidated.*).
        return read_header(path / WEIGHTS_NAME)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt") for file in path.glob(pattern))
        if pickles:
            raise UserError(
                f"{pickles[0]} is a pickle, which can run code when it is opened; "
                "only safetensors is read",
                "convert it with transformers: model.save_pretrained(DIR, safe_serialization=True)",
            )
        raise UserError(f"{path} has no .safetensors file", "download the weights too")
    if len(files) > 1:
        raise UserError(
            f"{path} has {len(files)} .safetensors files but no model.safetensors.index.json",
            "download the index too",
        )
    return read_header(files[0])


def _read_sharded(path: Path, index: Mapping[str, Any]) -> dict[str, StoredTensor]:
    weight_map = index.get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    if not weight_map or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{INDEX_NAME} has no weight_map of tensor names to files", "download the index again"
        )
    shards = sorted(set(names))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise UserError(
            f"{INDEX_NAME} names a file outside the model directory: {shown(outside[0])}",
            "download the index again",
        )
    missing = [shard for shard in shards if not _is_file(path / shard)]
    if missing:
        _refuse_other_case(path, missing[0])
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing, the first is {shown(missing[0])}",
            "download the missing files",
        )
    headers = {shard: read_header(path / shard) for shard in shards}
    absent = [name for name, shard in weight_map.items() if name not in headers[shard]]
    if absent:
        raise UserError(
            f"the index names {len(absent)} tensors that its shards do not hold, "
            f"the first is {shown(absent[0])} in {weight_map[absent[0]]}",
            "download the index and the shards again, from one revision",
        )
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _refuse_other_case(path: Path, shard: str) -> None:
    """UserError where ``shard`` is there, under a name in other letters' case."""
    for file in path.iterdir():
        if file.name.lower() == shard.lower():
            raise UserError(
                f"{INDEX_NAME} names {shard}, and the file is called {shown(file.name)}",
                f"mv {quote(str(file))} {quote(str(path / shard))}",
            )


def _is_file(file: Path) -> bool:
    """`Path.is_file`, which raises for a name that the system cannot have."""
    try:
        return file.is_file()
    except OSError:
        return False

"""An ONNX directory as the exporter writes it, and what is wrong with one that does not load.

model.onnx                   one graph with dynamic shapes, or
prefill.onnx, decode.onnx    two graphs with fixed shapes, which share their weights
config.json, tokenizer.json  as Hugging Face writes them
tenp.json                    the mode and the widths
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from tenp_edge.errors import UserError

DYNAMIC, PREFILL, DECODE = "model.onnx", "prefill.onnx", "decode.onnx"
_DIGITS = 20
_COPY = "copy the whole directory again, or export it again"


@dataclass(frozen=True)
class OnnxDirectory:
    """Paths and facts; nothing of the weights. ``facts`` is tenp.json, empty without one."""

    path: Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def static(self) -> bool:
        """Whether its shapes are fixed (prefill.onnx and decode.onnx)."""
        return not (self.path / DYNAMIC).is_file()

    @property
    def mode(self) -> str:
        """How it was exported: portable, static or ort-cpu."""
        return str(self.facts.get("mode", "static" if self.static else "portable"))

    @property
    def positions(self) -> int:
        """How many positions the model knows."""
        return self.number("max_position_embeddings")

    @property
    def context(self) -> int:
        """The longest sequence: the model's positions, or what graphs of fixed shapes hold."""
        lengths = self.facts.get("lengths", {})
        past = lengths.get("past") if isinstance(lengths, dict) else 0
        if past is None:
            return self.positions
        if type(past) is not int or past < 1:
            raise UserError(
                f"{self.path / 'tenp.json'}: lengths.past is {past!r}, not a number above zero",
                _COPY,
            )
        return min(past + 1, self.positions)

    def number(self, key: str) -> int:
        """An integer of config.json. Raises UserError where there is none."""
        value = self.config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                f"{self.path / 'config.json'}: {key} is {value!r}, not a number above zero", _COPY
            )
        return value


def is_onnx(path: Path) -> bool:
    """Whether ``path`` can only be a directory for `read_directory`, or a graph in one."""
    return path.is_dir() or path.suffix == ".onnx"


def holds_onnx(path: Path) -> bool:
    """Whether there is a model for `read_directory` in ``path``."""
    return path.is_dir() and any((path / name).is_file() for name in (DYNAMIC, PREFILL))


def read_directory(path: Path) -> OnnxDirectory:
    """The directory ``path``, or the one that the graph ``path`` lies in.

    Raises UserError when there is none, or no model in it.
    """
    from tenp_edge.runtime.directory_vocabulary import read_settings  # GGUF files need none of it

    directory = path.parent if path.suffix == ".onnx" else path
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist", "a directory with model.onnx in it")
    whole = (directory / DYNAMIC).is_file()
    if not whole and not all((directory / name).is_file() for name in (PREFILL, DECODE)):
        raise UserError(
            f"{directory} holds no ONNX model: neither {DYNAMIC} nor {PREFILL} and {DECODE}",
            exported_again(directory),
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} has no config.json", _COPY)
    config, facts = (read_settings(directory / name) for name in ("config.json", "tenp.json"))
    return OnnxDirectory(directory, config, facts)


def exported_again(directory: Path) -> str:
    """The command that writes ``directory`` anew, of the checkpoint that compress leaves beside."""
    if not (directory / "tenp.json").is_file():  # not ours: nothing is written over it
        return "tenp-edge export CHECKPOINT --format onnx -o DIR"
    checkpoint = directory.resolve().parent / "checkpoint"
    known = quote(str(checkpoint)) if (checkpoint / "config.json").is_file() else "CHECKPOINT"
    return f"tenp-edge export {known} --format onnx -o {quote(str(directory))} --force"


# -- what is wrong ---------------------------------------------------------------------------------


def refused(graph: Path, reason: str) -> UserError:
    """Why onnxruntime did not take ``graph``, in the user's words; ``reason`` in its own.

    Its weights lie in other files; what is wrong with those is found from the graph alone.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model(graph, load_external_data=False)
    except (DecodeError, ValueError):
        return UserError(f"{graph} is not an ONNX model", _COPY)
    for location, end in sorted(_data_ends(model).items()):
        error = _broken_data(graph, location, end)
        if error is not None:
            return error
    return UserError(f"onnxruntime cannot load {graph}: {_last_words(reason)}", _COPY)


def _broken_data(graph: Path, location: str, end: int) -> UserError | None:
    """The error for data that ``graph`` says is in the first ``end`` bytes of ``location``."""
    file = graph.parent / location
    if Path(location).is_absolute() or ".." in Path(location).parts:
        return UserError(
            f"{graph} keeps its weights in {location}, outside its directory",
            "export it again: a graph that reaches elsewhere is not run",
        )
    if not file.is_file():
        return UserError(f"{file} does not exist; {graph.name} keeps its weights there", _COPY)
    if file.stat().st_size < end:
        return UserError(
            f"{file} is cut off: it has {file.stat().st_size} bytes, {graph.name} needs {end}",
            _COPY,
        )
    return None


def _last_words(reason: str) -> str:
    """onnxruntime's message without its prefix of codes, on one line."""
    return " ".join(reason.split(" : ", 3)[-1].split())[:300]


def _data_ends(model: Any) -> dict[str, int]:
    """Location of external data -> how many bytes it must have."""
    ends: dict[str, int] = {}
    for tensor in _tensors(model.graph):
        stated = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in stated:
            end = sum(map(_number, (stated.get("offset", "0"), stated.get("length", "0"))))
            ends[stated["location"]] = max(end, ends.get(stated["location"], 0))
    return ends


def _number(text: str) -> int:
    """An offset or a length; 0 for what is none, which onnxruntime refuses in its own words."""
    return int(text) if text.isdecimal() and len(text) < _DIGITS else 0


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of ``graph`` and of the graphs within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)

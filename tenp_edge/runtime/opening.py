"""Opening a GGUF file or an ONNX directory in the runtime that can run it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.file_origin import is_ours, is_per_expert
from tenp_edge.runtime.gguf.header import Header, read_header
from tenp_edge.runtime.gguf.model_metadata import read_stacked
from tenp_edge.runtime.gguf.tensor_checks import check_tensors
from tenp_edge.runtime.gguf.vocabulary_checks import check_vocabulary
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.llamacpp.native import native
from tenp_edge.runtime.memory.footprint import PlannedRun
from tenp_edge.runtime.memory.planned_run import (
    Chosen,
    choose_run,
    planned_in_gguf,
    planned_in_json,
)
from tenp_edge.runtime.onnx.directory import is_onnx, read_directory
from tenp_edge.runtime.session import DEFAULT_CONTEXT, Session, check_parallel

_ARCHITECTURE = re.compile(r"[a-z0-9_]*")


@dataclass(frozen=True)
class RunOptions:
    """What every verb that runs a file takes. ``threads`` None: all cores.

    ``context``, ``ubatch``, ``kv_type`` None: what the file was planned for, else `DEFAULT_CONTEXT`
    (or less where the model ends before), 512 and F16; for ONNX the graph decides about the cache.
    ``parallel``: sequences that share the context; ONNX has one.
    ``prepack`` is for ONNX (see `OnnxModel`), ``gpu_layers`` for merged and padded GGUF. ``note``
    is told in a line what the plan says about the run.
    """

    context: int | None = None
    threads: int | None = None
    ubatch: int | None = None
    kv_type: str | None = None
    flash_attention: bool = True
    parallel: int = 1
    gpu_layers: int = 0
    prepack: bool = True
    note: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.kv_type is not None:  # llama.cpp writes them small
            object.__setattr__(self, "kv_type", self.kv_type.upper())


def open_model(file: str | Path, options: RunOptions | None = None) -> Session:
    """``file`` in the runtime that its contents ask for; ``runtime`` of the result names it.

    Raises UserError for a file that none can run, before its weights are touched.
    """
    file, options = Path(file), options or RunOptions()
    if not file.exists():
        raise UserError(f"{file} does not exist", "the path of a GGUF file or an ONNX directory")
    check_parallel(options.parallel)
    return _open_onnx(file, options) if is_onnx(file) else _open_gguf(file, options)


def _open_gguf(file: Path, options: RunOptions) -> Session:
    if not options.prepack:
        raise UserError(
            f"{file.name} is a GGUF file, which is never prepacked", "run without --no-prepack"
        )
    header = read_header(file)
    per_expert = is_per_expert(header.fields)
    if per_expert and options.gpu_layers:
        raise UserError(
            f"{file.name} has the per-expert layout, which runs on the CPU",
            "leave --gpu-layers out; or make a file for GPUs: tenp-edge compress MODEL --ram 8GiB "
            "--layout merged -o OUT",
        )
    trained = trained_context(header)
    chosen = chosen_run(options, header, options.note)
    title = model_title(header)
    if not per_expert:
        _check_stacked(file, header)
        _note_missing_gpu(options)
    del header  # Not beside the model: a large vocabulary takes tens of MiB.
    settings: _Settings = {
        "context": chosen.context,
        "threads": options.threads,
        "kv_type": chosen.kv_type,
        "ubatch": chosen.ubatch,
        "flash_attention": options.flash_attention,
        "parallel": options.parallel,
    }
    opened: Session = (
        PerExpertModel(file, **settings)
        if per_expert
        else LlamaCppModel(file, **settings, gpu_layers=options.gpu_layers)
    )
    opened.trained_context, opened.title = trained, title
    return opened


class _Settings(TypedDict):
    """What both runtimes of GGUF files are given."""

    context: int
    threads: int | None
    kv_type: str
    ubatch: int
    flash_attention: bool
    parallel: int


def _check_stacked(file: Path, header: Header) -> None:
    """Raise UserError where llama.cpp would end this process: what we wrote is held to what we
    write, anything else is tried in a process of its own."""
    if not is_ours(header.fields):
        from tenp_edge.runtime.llamacpp.survival import (
            require_survival,  # and with it, subprocesses
        )

        require_survival(file)
        return
    check_tensors(header, read_stacked(header))
    check_vocabulary(header)


def _note_missing_gpu(options: RunOptions) -> None:
    if options.gpu_layers and options.note and not native().llama_supports_gpu_offload():
        options.note(
            f"--gpu-layers {options.gpu_layers} changes nothing: this llama.cpp is built for the "
            "CPU alone"
        )


def trained_context(header: Header) -> int | None:
    """Tokens that the model of ``header`` knows; None where the file does not say."""
    name = header.fields.get("general.architecture")
    context = header.fields.get(f"{name}.context_length")
    return context if isinstance(context, int) and context > 0 else None


def model_title(header: Header) -> str | None:
    """The model's name in the metadata; None where that only names its architecture, as files
    without a name of their own do."""
    name = header.fields.get("general.name")
    is_name = isinstance(name, str) and not _ARCHITECTURE.fullmatch(name)
    return str(name) if is_name else None


def chosen_run(
    options: RunOptions, header: Header, note: Callable[[str], None] | None = None
) -> Chosen:
    """The run of a GGUF file: what ``options`` ask for, else what it was planned for."""
    return _chosen(options, planned_in_gguf(header.fields), trained_context(header), note)


def _chosen(
    options: RunOptions,
    planned: PlannedRun | None,
    trained: int | None,
    note: Callable[[str], None] | None,
) -> Chosen:
    chosen = choose_run(
        planned, trained, options.context, options.ubatch, options.kv_type, DEFAULT_CONTEXT
    )
    if note is not None:
        for line in chosen.notes:
            note(line)
    return chosen


def _open_onnx(path: Path, options: RunOptions) -> Session:
    from tenp_edge.runtime.onnx.model import OnnxModel  # its tokenizers are not for GGUF files

    if options.gpu_layers:
        raise UserError(
            f"{path.name} is an ONNX directory, which runs on the CPU here",
            "run without --gpu-layers",
        )
    if options.parallel != 1:
        raise UserError(
            f"{path.name} is an ONNX directory, which runs one sequence at a time",
            "run without --parallel",
        )
    files = read_directory(path)
    planned = planned_in_json(files.facts)
    if planned is not None:  # The graph decides about the cache.
        planned = replace(planned, kv_type=options.kv_type or planned.kv_type)
    # The model says itself what context is too long for it.
    chosen = _chosen(options, planned, None, options.note)
    model = OnnxModel(
        path,
        context=options.context if planned is None else chosen.context,
        threads=options.threads,
        ubatch=chosen.ubatch,
        prepack=options.prepack,
    )
    model.trained_context = files.context
    if options.kv_type not in (None, model.kv_type):
        model.close()
        raise UserError(
            f"{path.name} keeps its KV cache in {model.kv_type}, not in {options.kv_type}",
            "run without --kv-type",
        )
    return model


def model_bytes(path: Path) -> int:
    """Size of what `open_model` takes: of a file, or of everything in an ONNX directory."""
    if not is_onnx(path):
        return path.stat().st_size
    return sum(file.stat().st_size for file in read_directory(path).path.iterdir())


def model_name(path: Path) -> str:
    """What a model is called after its file or directory."""
    return read_directory(path).path.resolve().name if is_onnx(path) else path.stem

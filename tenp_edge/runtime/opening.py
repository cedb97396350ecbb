"""Opening a GGUF file or an ONNX directory in the runtime that can run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.facts import is_ours, is_per_expert, read_stacked
from tenp_edge.runtime.gguf_file import read_fields, read_header
from tenp_edge.runtime.llamacpp import LlamaCppModel
from tenp_edge.runtime.onnx_directory import is_onnx, read_directory
from tenp_edge.runtime.onnx_model import OnnxModel
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.probe import require_survival
from tenp_edge.runtime.session import DEFAULT_CONTEXT, Session
from tenp_edge.runtime.tensors import check_tensors
from tenp_edge.runtime.vocabulary import check_vocabulary

_GGUF_KV_TYPE = "F16"


@dataclass(frozen=True)
class RunOptions:
    """What every verb that runs a file takes. ``threads`` None: all cores.

    ``context`` None: `DEFAULT_CONTEXT`, or less where an ONNX model ends before. ``kv_type`` None:
    F16 for GGUF; for ONNX the graph decides. ``prepack`` is for ONNX (see `OnnxModel`),
    ``gpu_layers`` for merged and padded GGUF.
    """

    context: int | None = None
    threads: int | None = None
    ubatch: int = 512
    kv_type: str | None = None
    flash_attention: bool = True
    gpu_layers: int = 0
    prepack: bool = True


def open_model(file: str | Path, options: RunOptions | None = None) -> Session:
    """``file`` in the runtime that its contents ask for; ``runtime`` of the result names it.

    Raises UserError for a file that none can run, before its weights are touched.
    """
    file, options = Path(file), options or RunOptions()
    if not file.exists():
        raise UserError(f"{file} does not exist", "the path of a GGUF file or an ONNX directory")
    if is_onnx(file):
        return _open_onnx(file, options)
    if not options.prepack:
        raise UserError(
            f"{file.name} is a GGUF file, which is never prepacked", "run without --no-prepack"
        )
    if is_per_expert(read_fields(file)):
        if options.gpu_layers:
            raise UserError(
                f"{file.name} has the per-expert layout, which runs on the CPU",
                "export --layout merged for --gpu-layers",
            )
        return PerExpertModel(
            file,
            context=options.context or DEFAULT_CONTEXT,
            threads=options.threads,
            kv_type=options.kv_type or _GGUF_KV_TYPE,
            ubatch=options.ubatch,
            flash_attention=options.flash_attention,
        )
    _check_stacked(file)
    return LlamaCppModel(
        file,
        context=options.context or DEFAULT_CONTEXT,
        threads=options.threads,
        kv_type=options.kv_type or _GGUF_KV_TYPE,
        ubatch=options.ubatch,
        flash_attention=options.flash_attention,
        gpu_layers=options.gpu_layers,
    )


def _check_stacked(file: Path) -> None:
    """Raise UserError where llama.cpp would end this process: what we wrote is held to what we
    write, anything else is tried in a process of its own."""
    header = read_header(file)
    if not is_ours(header.fields):
        require_survival(file)
        return
    check_tensors(header, read_stacked(header))
    check_vocabulary(header)


def _open_onnx(path: Path, options: RunOptions) -> OnnxModel:
    if options.gpu_layers:
        raise UserError(
            f"{path.name} is an ONNX directory, which runs on the CPU here",
            "run without --gpu-layers",
        )
    model = OnnxModel(
        path,
        context=options.context,
        threads=options.threads,
        ubatch=options.ubatch,
        prepack=options.prepack,
    )
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

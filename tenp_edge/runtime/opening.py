"""Opening a GGUF file in the runtime that can run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.facts import is_per_expert
from tenp_edge.runtime.gguf_file import read_fields, read_header
from tenp_edge.runtime.llamacpp import LlamaCppModel
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.vocabulary import check_vocabulary


@dataclass(frozen=True)
class RunOptions:
    """What every verb that runs a file takes. ``threads`` None: all cores."""

    context: int = 2048
    threads: int | None = None
    ubatch: int = 512
    kv_type: str = "F16"
    flash_attention: bool = True
    gpu_layers: int = 0


def open_model(file: str | Path, options: RunOptions | None = None) -> Session:
    """``file`` in the runtime that its metadata asks for; ``runtime`` of the result names it.

    Raises UserError for a file that neither can run, before its weights are touched.
    """
    file, options = Path(file), options or RunOptions()
    if is_per_expert(read_fields(file)):
        if options.gpu_layers:
            raise UserError(
                f"{file.name} has the per-expert layout, which runs on the CPU",
                "export --layout merged for --gpu-layers",
            )
        return PerExpertModel(
            file,
            context=options.context,
            threads=options.threads,
            kv_type=options.kv_type,
            ubatch=options.ubatch,
            flash_attention=options.flash_attention,
        )
    check_vocabulary(read_header(file))
    return LlamaCppModel(
        file,
        context=options.context,
        threads=options.threads,
        kv_type=options.kv_type,
        ubatch=options.ubatch,
        flash_attention=options.flash_attention,
        gpu_layers=options.gpu_layers,
    )

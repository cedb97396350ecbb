"""What ``compress`` leaves for others: model cards, licences, and a Modelfile for Ollama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tenp_edge.checkpoint.model_origin import LICENCES
from tenp_edge.checkpoint.writer import copied_files
from tenp_edge.disk import copy_file
from tenp_edge.runtime.chat_template_of import has_chat_template
from tenp_edge.runtime.locating import Found
from tenp_edge.sharing.model_card import Described, add_metrics, write_card
from tenp_edge.sharing.modelfile import STOCK_LAYOUTS, write_modelfile

CARD_VERSION = 3  # one more where cards say something else


def describe_into(described: Described, output: Path, target: Path) -> None:
    """Beside the exported ``target`` in ``output``, and in the pruned checkpoint there."""
    record, checkpoint = described.plan.record, described.source.checkpoint
    write_card(replace(described, converses=_converses(record.format, target)), output)
    add_metrics(described, output / "checkpoint")
    if not checkpoint.is_file:
        for file in copied_files(checkpoint.path, LICENCES):
            copy_file(file, output / file.name)
    if record.format == "gguf" and record.layout in STOCK_LAYOUTS:
        write_modelfile(target, int(described.plan.memory["context"]))


def _converses(file_format: str | None, target: Path) -> bool:
    """Whether the file has a chat template; formats of others are taken to."""
    if file_format == "gguf":
        return has_chat_template(Found("gguf", target))
    return file_format != "onnx" or has_chat_template(Found("onnx", target))

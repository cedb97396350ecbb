"""--quant keep: the source's own bytes, wherever the cut leaves whole blocks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import random_plan
from support.gguf_sources import rewritten, tensors_of, write_gguf

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import KEEP, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.runtime.gguf.header import read_header

Make = Callable[..., Path]
LAYER, EXPERT, FULL = 1, 2, 96


def write(source: ModelSource, file: Path, layout: str) -> Path:
    EXPORTER.write(source, ExportOptions(KEEP, layout), file)
    return file


def in_blocks(plan: CompressionPlan) -> CompressionPlan:
    """With neurons 32 to 63 and, where there are more, 64 to 95 of each expert."""
    widths = {
        layer: tuple(max(32, w // 32 * 32) for w in row) for layer, row in plan.widths.items()
    }
    retained = {
        (layer, expert): torch.arange(FULL - width if width > 32 else 32, FULL)[:width].int()
        for layer, row in widths.items()
        for expert, width in enumerate(row)
    }
    return replace(plan, widths=widths, retained=retained)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_whole_model_is_its_source_again(family: str, gguf_of: Make, tmp_path: Path) -> None:
    source = gguf_of(family)
    file = write(ModelSource(Checkpoint(source)), tmp_path / "made.gguf", "merged")
    assert tensors_of(file) == tensors_of(source)
    assert read_header(file).fields["general.file_type"] == 7


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_rows_of_gate_and_up_are_moved_and_down_is_encoded_again(
    family: str, gguf_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(gguf_of(family))
    plan = random_plan(checkpoint, "ragged")
    source = ModelSource(checkpoint, plan)
    made = tensors_of(write(source, tmp_path / "made.gguf", "per-expert"))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_of(family)).tensors}
    kept = plan.neurons(LAYER, EXPERT)
    for part in ("gate", "up"):
        rows = np.array(theirs[f"blk.{LAYER}.ffn_{part}_exps.weight"].data)[EXPERT]
        assert made[f"blk.{LAYER}.ffn_{part}.{EXPERT}.weight"] == (8, rows[kept].tobytes())
    weights = source.expert(LAYER, EXPERT)
    kind = TYPES["Q8_0" if len(kept) % 32 == 0 else "F16"]
    down = made[f"blk.{LAYER}.ffn_down.{EXPERT}.weight"]
    assert down == (kind.ggml_id, bytes(kind.encode(weights.down)))


def test_whole_blocks_of_down_are_moved(gguf_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(gguf_of("qwen3_moe"))
    plan = in_blocks(random_plan(checkpoint, "ragged"))
    made = tensors_of(write(ModelSource(checkpoint, plan), tmp_path / "made.gguf", "per-expert"))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_of("qwen3_moe")).tensors}
    moved = 0
    for (layer, expert), kept in plan.retained.items() if plan.retained else ():
        rows = np.array(theirs[f"blk.{layer}.ffn_down_exps.weight"].data)[expert]
        blocks = rows.reshape(64, -1, 34)[:, kept[::32].numpy() // 32]
        assert made[f"blk.{layer}.ffn_down.{expert}.weight"] == (8, blocks.tobytes())
        moved += len(kept) < FULL
    assert moved


def test_every_tensor_has_its_own_type(checkpoint_of: Make, tmp_path: Path) -> None:
    """A mix of types, as most files are, is the same mix after the cut."""
    file = write_gguf(checkpoint_of("qwen3_moe"), tmp_path / "mixed.gguf", "Q4_K_M")
    checkpoint = Checkpoint(file)
    kinds = {name: kind for name, (kind, _) in tensors_of(file).items()}
    assert len(set(kinds.values())) > 2
    plan = in_blocks(random_plan(checkpoint, "uniform"))
    made = tensors_of(write(ModelSource(checkpoint, plan), tmp_path / "made.gguf", "merged"))
    assert {name: kind for name, (kind, _) in made.items()} == kinds


# -- what is refused -------------------------------------------------------------------------------


def test_a_checkpoint_has_no_types_to_keep(
    checkpoint_of: Make, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    model = checkpoint_of("qwen3_moe")
    assert refuse("export", model, "--quant", "keep", "-o", tmp_path / "made.gguf") == (
        f"error: --quant keep keeps the types of a GGUF, {model} is a checkpoint\n"
        "try:   --quant Q8_0, or a GGUF as the model"
    )


def test_types_that_can_only_be_read(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", "qwen3_moe", hidden_size=128)
    file = write_gguf(model, tmp_path / "m.gguf", "F32")
    blocks = np.zeros((384, 18), np.uint8)
    embedding = "token_embd.weight"
    rewritten(file, without_tensors=(embedding,), extra={embedding: (41, blocks)})
    checkpoint = Checkpoint(file)
    assert not checkpoint.read("model.embed_tokens.weight").any()
    with pytest.raises(UserError) as refused:
        write(ModelSource(checkpoint), tmp_path / "made.gguf", "merged")
    assert refused.value.message == (
        "--quant keep: token_embd.weight is Q1_0 in m.gguf, which can only be read"
    )


def test_a_type_that_needs_an_importance_matrix(tmp_path: Path, refuse: Callable[..., str]) -> None:
    model = tiny.make(tmp_path / "m", "qwen3_moe", hidden_size=256, moe_intermediate_size=512)
    source = ModelSource(Checkpoint(model))
    rules = ("ffn_.*_exps=IQ2_XS",)
    EXPORTER.write(source, ExportOptions("Q8_0", "merged", tensor_types=rules), tmp_path / "m.gguf")
    checkpoint = Checkpoint(tmp_path / "m.gguf")
    plan = random_plan(checkpoint, "uniform")
    plan.save(tmp_path / "plan.json")
    command = ("export", tmp_path / "m.gguf", "--plan", tmp_path / "plan.json", "--quant", "keep")
    assert refuse(*command, "-o", tmp_path / "made.gguf") == (
        "error: --quant keep: blk.0.ffn_down_exps.weight is IQ2_XS, which cannot be quantised "
        "again without an importance matrix\n"
        f"try:   --calibration WORK (tenp-edge calibrate {tmp_path / 'm.gguf'} -o WORK) "
        "without --no-imatrix, or plan --set "
        "down=blocks"
    )
    assert not (tmp_path / "made.gguf").exists()

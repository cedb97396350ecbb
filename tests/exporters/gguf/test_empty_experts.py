"""Experts without neurons that keep their place in the router: in files, runtimes, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.edits import refusal
from support.gguf_cases import TOKENS, assert_close, llama_logits, torch_logits
from support.mixes import GGUF, mix
from support.plans import cycled, plan_for
from support.runtime_cases import build_extension
from support.validating import domains_of

from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.evaluation.validation import validate
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.forward.transformers_model import load_pruned
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.gguf.padded_twin import GgufFile, write_padded_twin

CheckpointOf = Callable[[str], Path]
CHOICES = {"context": 128, "threads": 1, "kv_type": "F32"}


@pytest.fixture(scope="module", autouse=True)
def extension(tmp_path_factory: pytest.TempPathFactory) -> bool:
    return build_extension(tmp_path_factory.mktemp("extension"))


def emptied(checkpoint: Checkpoint) -> CompressionPlan:
    """Every third expert has no neurons, at another place in each layer."""
    full = checkpoint.config.moe_intermediate_size
    return replace(plan_for(checkpoint, cycled(checkpoint, (0, 32, full))), keeps_places=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "gemma4_text"])
def test_everything_computes_the_same(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Both ways of our runtime, unmodified llama.cpp with zeros instead, the file's twin, and torch
    with the neurons set to zero."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = emptied(checkpoint)
    source, file = ModelSource(checkpoint, plan), tmp_path / "model.gguf"
    manifest = GGUF.write(source, ExportOptions("F32", "per-expert"), file)
    GGUF.write(source, ExportOptions("F32", "padded"), tmp_path / "padded.gguf")
    write_padded_twin(GgufFile(file), tmp_path / "twin.gguf")
    header = read_header(file)
    assert manifest.file_bytes == file.stat().st_size
    assert header.fields["tenp.version"] == 2
    for layer, row in plan.widths.items():
        there = [f"blk.{layer}.ffn_up.{e}.weight" in header.tensors for e in range(len(row))]
        assert there == [width > 0 for width in row]
    wanted = torch_logits(checkpoint.path, plan)
    assert_close(llama_logits(tmp_path / "padded.gguf"), wanted, family)
    assert_close(llama_logits(tmp_path / "twin.gguf"), wanted, family)
    for use_extension in (True, False):
        with PerExpertModel(file, use_extension=use_extension, **CHOICES) as model:
            assert_close(model.logits(TOKENS), wanted, family)
            model.reset()
            rows = [model.decode(token) for token in TOKENS[:12]]
            assert_close(np.array(rows), wanted[:12], family)


def test_checkpoints_and_plans_hold_them(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = emptied(checkpoint)
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again.keeps_places and again.digest == plan.digest
    assert replace(plan, keeps_places=False).digest != plan.digest
    source = ModelSource(checkpoint, plan)
    assert source.config.num_experts == checkpoint.config.num_experts
    write_checkpoint(source, tmp_path / "pruned")
    tokens = torch.tensor(TOKENS[:40])[None]
    with torch.no_grad():
        found = load_pruned(tmp_path / "pruned")(tokens).logits[0].numpy()
    assert_close(found, torch_logits(checkpoint.path, plan)[:40], "qwen3_moe")
    pruned = ModelSource(Checkpoint(tmp_path / "pruned"))
    options = ExportOptions("Q8_0", "per-expert")
    GGUF.write(source, options, tmp_path / "direct.gguf")
    GGUF.write(pruned, options, tmp_path / "again.gguf")
    names = read_header(tmp_path / "direct.gguf").tensors
    assert names == read_header(tmp_path / "again.gguf").tensors


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_they_may_give_their_mean_output(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """The plan, the checkpoint, the file and its two runtimes hold the constants, and agree."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = emptied(checkpoint)
    without = torch_logits(checkpoint.path, plan)
    draw, full = torch.Generator().manual_seed(2), plan.full_width
    keys = [(layer, e) for layer, row in plan.widths.items() for e, w in enumerate(row) if not w]
    means = {key: torch.randn(full, generator=draw) for key in keys[::2]}
    plan = replace(plan, constants=frozenset(means), means=means)
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert (again.digest, again.constants) == (plan.digest, plan.constants)
    assert replace(plan, constants=frozenset(), means=None).digest != plan.digest
    source, file = ModelSource(checkpoint, again), tmp_path / "model.gguf"
    (layer, expert), mean = keys[0], means[keys[0]]
    whole = checkpoint.expert(layer, expert)
    constant = whole.down.float() @ mean + (0 if whole.down_bias is None else whole.down_bias)
    assert torch.allclose(source.expert(layer, expert).down_bias, constant)
    write_checkpoint(source, tmp_path / "pruned")
    pruned = Checkpoint(tmp_path / "pruned")
    assert pruned.config.constants == source.config.constants
    tokens = torch.tensor(TOKENS)[None]
    with torch.no_grad():
        wanted = load_pruned(tmp_path / "pruned")(tokens).logits[0].numpy()
    assert np.abs(wanted - without).max() > 1e-3
    options = ExportOptions("F32", "per-expert")
    manifest = GGUF.write(source, options, file)
    assert manifest.file_bytes == file.stat().st_size
    GGUF.write(ModelSource(pruned), options, tmp_path / "again.gguf")
    assert read_header(file).tensors == read_header(tmp_path / "again.gguf").tensors
    stored = GGUF.read_back(file, checkpoint.config)
    assert torch.allclose(stored.expert(layer, expert).down_bias, constant)  # type: ignore[arg-type]
    for use_extension in (True, False):
        with PerExpertModel(file, use_extension=use_extension, **CHOICES) as model:
            assert_close(model.logits(TOKENS), wanted, family)
    report = validate(checkpoint.path, file, domains_of(checkpoint.path), device="cpu", threads=1)
    assert report.overall.mean_kl == pytest.approx(report.losses[0].overall.mean_kl, rel=1e-3)
    assert refusal(lambda: GGUF.check(source.config, ExportOptions("F32", "padded"))) == (
        "the padded layout cannot hold experts that give a constant",
        "--layout per-expert, or plan again with this layout",
    )


def test_files_are_read_back(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = emptied(checkpoint)
    types = mix(checkpoint.config, ("Q4_0", "Q5_0"), ("Q8_0",))
    plan = replace(plan, types=types)
    source = ModelSource(checkpoint, plan)
    options = ExportOptions("Q8_0", "per-expert").typed(plan.file_types)
    GGUF.write(source, options, tmp_path / "model.gguf")
    stored = GGUF.read_back(tmp_path / "model.gguf", checkpoint.config)
    rounded = GGUF.requantised(source, options)
    for expert, width in enumerate(plan.widths[1]):
        for part in ("gate", "up", "down"):
            found = getattr(stored.expert(1, expert), part)
            assert found.shape == getattr(source.expert(1, expert), part).shape
            assert torch.equal(found, getattr(rounded.expert(1, expert), part).float()), width


def test_what_cannot_hold_them_says_so(checkpoint_of: CheckpointOf) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    full = checkpoint.config.moe_intermediate_size
    plan = replace(plan_for(checkpoint, cycled(checkpoint, (0, full))), keeps_places=True)
    config = ModelSource(checkpoint, plan).config
    assert refusal(lambda: exporter("onnx").check(config, ExportOptions("none", "portable"))) == (
        "ONNX cannot hold experts without neurons, as expert 0 of layer 0 is",
        "--format gguf, or plan again for ONNX",
    )
    assert refusal(lambda: GGUF.check(config, ExportOptions("F32", "merged"))) == (
        f"the merged layout needs one expert width, this model has 2: 0, {full}",
        "--layout per-expert or padded; or compress again with --layout merged",
    )
    bare = replace(plan, widths={**plan.widths, 1: (0,) * 8})
    assert refusal(lambda: ModelSource(checkpoint, bare)) == (
        "the plan leaves no neurons in layer 1",
        "plan again",
    )

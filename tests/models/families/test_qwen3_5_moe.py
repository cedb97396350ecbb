"""Qwen3.5 as it is published: a language model inside one that sees, with a head that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_quantised import Published, fp8_parts, write_quantised
from safetensors.torch import load_file, save_file
from support import tiny
from support.gguf_cases import random_plan
from support.plans import ragged_plan
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3_5MoeForConditionalGeneration

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.models import expected_tensors
from tenp_edge.models.inspection import inspect_model

TOKENS = torch.arange(40, 80)[None]
PREFIX = "model.language_model."
WHOLE = tiny.CONFIGS["qwen3_5_moe"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of the whole model, a prediction head and the tokenizer beside it."""
    directory = tmp_path_factory.mktemp("qwen3_5")
    stated = {key: value for key, value in WHOLE.items() if key != "model_type"}
    torch.manual_seed(0)
    model = Qwen3_5MoeForConditionalGeneration(AutoConfig.for_model("qwen3_5_moe", **stated))
    with torch.no_grad():
        for name, parameter in model.eval().named_parameters():
            if ".mlp.gate." in name or name.endswith("norm.weight"):
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(directory)
    file = directory / "model.safetensors"
    mtp = {"mtp.fc.weight": torch.ones(64, 128), "mtp.norm.weight": torch.ones(64)}
    save_file(load_file(file) | mtp, file)
    tiny.write_tokenizer(directory)
    return directory


def test_the_language_model_is_found_and_the_rest_is_named(published: Path) -> None:
    files = Checkpoint(published)
    assert files.config.stored_prefix == PREFIX
    vision = sum("visual" in name for name in files.left_out)
    assert files.left_out_text == (
        f"2 tensors of multi-token prediction layers, {vision} tensors of the vision part"
    )
    summary = inspect_model(published)
    assert (summary.family, summary.experts, summary.shared_width) == ("qwen3_5_moe", 8, 64)


def test_text_goes_through_as_through_the_whole_model(published: Path) -> None:
    device, source = torch.device("cpu"), ModelSource(Checkpoint(published))
    (found,) = streaming_logits(source, TOKENS, device=device, dtype=torch.float32)
    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(published)
    with torch.no_grad():
        wanted = model(TOKENS).logits[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_written_is_the_language_model_alone(published: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(published)
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path)
    pruned = load_pruned(tmp_path)
    assert pruned.config.model_type == "qwen3_5_moe_text"
    assert not Checkpoint(tmp_path).left_out
    generated = pruned.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 44)


def test_the_language_model_alone_loads_in_plain_transformers(
    published: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(published)
    write_checkpoint(ModelSource(checkpoint, random_plan(checkpoint, "whole")), tmp_path)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits
        wanted = load_pruned(tmp_path)(TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe"])
def test_fp8_is_read_matrix_by_matrix(family: str, tmp_path: Path) -> None:
    """Experts one by one, blocks of 128 x 128 that no size fills, gates left in bf16."""
    raw: dict[str, Any] = tiny.CONFIGS[family] | {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}
    }
    write_quantised(tmp_path, Published(raw, fp8_parts))
    tiny.write_tokenizer(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for spec in expected_tensors(checkpoint.config):
        name = checkpoint.config.stored_name(spec.name)
        wanted = stored[name].float()
        if f"{name}_scale_inv" in stored:
            wanted = (
                wanted
                * stored[f"{name}_scale_inv"]
                .repeat_interleave(128, 0)[: len(wanted)]
                .repeat_interleave(128, 1)[:, : wanted.shape[1]]
            )
        torch.testing.assert_close(checkpoint.read(spec.name).float(), wanted, rtol=1e-2, atol=0)
    (logits,) = streaming_logits(
        ModelSource(checkpoint), TOKENS, device=torch.device("cpu"), dtype=torch.float32
    )
    assert bool(logits.isfinite().all())

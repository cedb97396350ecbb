"""Gemma 4 as it is published: a language model inside one that sees, its experts stacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.plans import ragged_plan
from transformers import AutoConfig, AutoModelForCausalLM, Gemma4ForConditionalGeneration

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.models.inspection import inspect_model

TOKENS = torch.arange(40, 80)[None]
VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "pooling_kernel_size": 1,
    "position_embedding_size": 16,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of the whole model, its tokenizer and every key beside it."""
    directory = tmp_path_factory.mktemp("gemma4")
    config = AutoConfig.for_model(
        "gemma4",
        architectures=["Gemma4ForConditionalGeneration"],
        text_config=tiny.CONFIGS["gemma4_text"],
        vision_config=VISION,
        audio_config=None,
    )
    torch.manual_seed(0)
    model = Gemma4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(directory)
    tiny.write_tokenizer(directory)
    return directory


def whole_logits(directory: Path) -> torch.Tensor:
    model = Gemma4ForConditionalGeneration.from_pretrained(directory)
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS).logits
    return logits[0]


def test_the_language_model_is_found_and_the_rest_is_named(published: Path) -> None:
    files = Checkpoint(published)
    assert files.config.stored_prefix == "model.language_model."
    assert files.left_out and all(".layers." in n or "vis" in n for n in files.left_out)
    assert files.left_out_text == f"{len(files.left_out)} tensors of the vision part"
    summary = inspect_model(published)
    assert (summary.family, summary.experts, summary.fused_experts) == ("gemma4", 8, True)


def test_text_goes_through_as_through_the_whole_model(published: Path) -> None:
    source = ModelSource(Checkpoint(published))
    device = torch.device("cpu")
    (found,) = streaming_logits(source, TOKENS, device=device, dtype=torch.float32)
    torch.testing.assert_close(found, whole_logits(published), rtol=1e-4, atol=1e-4)


def test_what_is_written_is_the_language_model_alone(published: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(published)
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path)
    pruned = load_pruned(tmp_path)
    assert pruned.config.model_type == "gemma4_text"
    assert not Checkpoint(tmp_path).left_out
    generated = pruned.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 44)
    with pytest.raises(ValueError, match="narrower experts"):
        AutoModelForCausalLM.from_pretrained(tmp_path)

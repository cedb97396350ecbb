"""A wrapped language model: read out of the whole, and what lies beside it counted and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import write_random_checkpoint
from rich.console import Console
from safetensors.torch import load_file, save_file
from support import tiny
from support.edits import refusal

from tenp_edge.cli.report.model_tables import summary
from tenp_edge.models import FAMILIES, Family, VisionFacts, read_config
from tenp_edge.models.headers import ModelFiles
from tenp_edge.models.inspection import inspect_model
from tenp_edge.models.wrapper import Wrapper, kinds_text, left_out_kinds

WRAPPER = Wrapper(
    "seeing_text",
    parts=("vision_config", "image_token_id"),
    taken=(("vision_config", "use_sliding_window"),),
)
SEEING = replace(FAMILIES["qwen3_moe"], model_type="seeing", wrapper=WRAPPER)
TABLE: Mapping[str, Family] = {"seeing": SEEING}
TEXT = {
    k: v for k, v in tiny.CONFIGS["qwen3_moe"].items() if k not in ("torch_dtype", "eos_token_id")
}
WHOLE: dict[str, Any] = {
    "architectures": ["SeeingForConditionalGeneration"],
    "model_type": "seeing",
    "dtype": "float32",
    "eos_token_id": 7,
    "image_token_id": 5,
    "tie_word_embeddings": False,
    "text_config": TEXT | {"model_type": "seeing_text"},
    "vision_config": {"depth": 2, "use_sliding_window": False},
}
BELONGS = "the config.json that belongs to the checkpoint"


def test_the_language_models_config_is_what_its_own_file_would_say() -> None:
    config = read_config(WHOLE, TABLE)
    assert config.family is SEEING and config.stored_prefix == "model.language_model."
    assert config.raw["model_type"] == "seeing_text"
    assert config.raw["architectures"] == [SEEING.architecture]
    assert config.raw["eos_token_id"] == 7 and config.dtype == "float32"
    assert not config.tie_word_embeddings  # the whole's word, against text_config's
    assert config.raw["use_sliding_window"] is False  # taken from vision_config
    alone = read_config(config.raw, TABLE)
    assert alone == replace(config, stored_prefix="model.")
    assert config.stored_name("model.norm.weight") == "model.language_model.norm.weight"
    assert config.stored_name("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"text_config": None},
            "config.json has no text_config: seeing wraps a language model, and this one has none",
            "the config.json and the weights of the whole model",
        ),
        (
            {"text_config": TEXT | {"model_type": "qwen3_vl_text"}},
            "config.json: text_config is of 'qwen3_vl_text', not of 'seeing_text'",
            BELONGS,
        ),
        (
            {"audio_config": {"depth": 1}},
            "config.json has keys that seeing does not know: audio_config",
            "remove them if they do not change the model's arithmetic",
        ),
        (
            {"model_type": "hearing"},
            "model family 'hearing' is not supported",
            "supported: seeing",
        ),
        (
            {"model_type": "hearing", "text_config": {"hidden_size": 64}},
            "'hearing' is a dense model: it has no routed experts to prune",
            "a Mixture-of-Experts checkpoint of one of: seeing",
        ),
    ],
    ids=("no text model", "another text model", "unknown part", "unknown whole", "dense whole"),
)
def test_what_is_no_known_whole_is_refused(
    changes: dict[str, Any], message: str, hint: str
) -> None:
    assert refusal(lambda: read_config(WHOLE | changes, TABLE)) == (message, hint)


def test_what_is_left_out_is_said_by_kind() -> None:
    names = ("model.visual.blocks.0.w", "model.vision_tower.w", "model.embed_audio.w", "mtp.fc.w")
    assert kinds_text(left_out_kinds(names)) == (
        "1 tensor of multi-token prediction layers, 1 tensor of the audio part, "
        "2 tensors of the vision part"
    )


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the wrapped family, with a vision tensor."""
    monkeypatch.setitem(FAMILIES, "seeing", SEEING)
    write_random_checkpoint(tmp_path / "model", WHOLE)
    _edit(tmp_path / "model", {"model.visual.patch.weight": torch.ones(4)})
    return tmp_path / "model"


def _edit(model: Path, more: dict[str, torch.Tensor]) -> None:
    save_file(load_file(model / "model.safetensors") | more, model / "model.safetensors")


def test_files_are_read_under_the_language_models_own_names(whole: Path, tmp_path: Path) -> None:
    files = ModelFiles(whole)
    assert files.left_out == ("model.visual.patch.weight",)
    assert files.left_out_text == "1 tensor of the vision part"
    write_random_checkpoint(tmp_path / "alone", files.config.raw)
    alone = ModelFiles(tmp_path / "alone")
    assert alone.config.stored_prefix == "model." and alone.left_out == ()
    assert files.tensors.keys() - set(files.left_out) == alone.tensors.keys()
    assert "model.language_model.norm.weight" in load_file(whole / "model.safetensors")


def test_the_same_names_inside_and_outside_are_refused(whole: Path) -> None:
    _edit(whole, {"model.norm.weight": torch.ones(64)})
    assert refusal(lambda: ModelFiles(whole)) == (
        "the checkpoint has tensors both of model.language_model.* and of model.* by the same "
        "names",
        "the checkpoint as it was published",
    )


ROPE = {"rope_type": "default", "mrope_section": [6, 5, 5]}


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"mrope_section": [6, 5]},
            "config.json: mrope_section is [6, 5], not three numbers above zero",
        ),
        (
            {"mrope_section": [8, 5, 5]},
            "config.json contradicts itself: mrope_section sums to 18, half a head is 16",
        ),
        (
            {"mrope_interleaved": False},
            "config.json: mrope_interleaved = False is not supported",
        ),
        (
            {"mrope_part": 1},
            "config.json: rope key mrope_part is not supported",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sections_that_are_not_understood_are_refused(rope: dict[str, Any], message: str) -> None:
    raw = tiny.CONFIGS["qwen3_vl_moe"]
    raw = raw | {"text_config": raw["text_config"] | {"rope_scaling": ROPE | rope}}
    assert refusal(lambda: read_config(raw, FAMILIES))[0] == message


def test_what_pictures_need_is_kept() -> None:
    config = read_config(tiny.CONFIGS["qwen3_vl_moe"], FAMILIES)
    assert config.vision == VisionFacts((6, 5, 5), 2)
    assert "mrope_section" not in config.raw["rope_scaling"]
    assert read_config(config.raw, FAMILIES).vision == config.vision


def test_inspect_says_what_is_left_out(whole: Path) -> None:
    console = Console(width=200, no_color=True)
    with console.capture() as shown:
        console.print(summary(inspect_model(whole)))
    assert "left out of every output: 1 tensor of the vision part (16 B)" in shown.get()

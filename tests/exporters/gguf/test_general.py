"""What a file says of its model: as llama.cpp's converter would, from the card and the config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from support import tiny
from support.gguf_cases import export, random_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource

CARD = """---
license: other
license_name: tongyi
license_link: https://example.org/LICENSE
language: [en, no]
pipeline_tag: text-generation
tags: [chat]
base_model: Qwen/Qwen3-300K-A200K-Base
---
# A card
"""
NAMED = {
    "general.type": "model",
    "general.name": "Qwen3 300K A200K Instruct",
    "general.organization": "Qwen",
    "general.basename": "Qwen3",
    "general.finetune": "Instruct",
    "general.size_label": "300K-A200K",
    "general.license": "other",
    "general.license.name": "tongyi",
    "general.license.link": "https://example.org/LICENSE",
    "general.languages": ["en", "no"],
    "general.tags": ["chat", "text-generation"],
    "general.base_model.count": 1,
    "general.base_model.0.name": "Qwen3 300K A200K Base",
    "general.base_model.0.organization": "Qwen",
    "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-300K-A200K-Base",
    "general.sampling.temp": pytest.approx(0.7),
    "general.sampling.top_k": 20,
    "general.quantized_by": "tenp-edge",
    "general.quantization_version": 2,
    "general.file_type": 7,
}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.make(tmp_path_factory.mktemp("hub") / "model", "qwen3_moe")
    config = json.loads((path / "config.json").read_text())
    config["_name_or_path"] = "Qwen/Qwen3-300K-A200K-Instruct"
    (path / "config.json").write_text(json.dumps(config))
    (path / "README.md").write_text(CARD)
    (path / "generation_config.json").write_text('{"temperature": 0.7, "top_k": 20}')
    return path


def general(model: Path, file: Path, kind: str = "whole", quant: str = "Q8_0") -> dict[str, Any]:
    """The ``general.*`` fields of a file of ``model``, which has the predicted size."""
    checkpoint = Checkpoint(model)
    manifest = export(ModelSource(checkpoint, random_plan(checkpoint, kind)), file, quant)
    assert manifest.file_bytes == file.stat().st_size
    fields = gguf.GGUFReader(file).fields.items()
    return {k: field.contents() for k, field in fields if k.startswith("general.")}


def test_the_card_and_the_hub_id_name_the_file(named: Path, tmp_path: Path) -> None:
    found = general(named, tmp_path / "a.gguf")
    assert found.pop("general.architecture") == "qwen3moe"
    assert found == NAMED


def test_a_pruned_file_says_its_own_size_and_what_it_was_made_of(
    named: Path, tmp_path: Path
) -> None:
    found = general(named, tmp_path / "a.gguf", "ragged", "F32")
    assert found["general.name"] == NAMED["general.name"]
    assert found["general.base_model.0.repo_url"].endswith("/Qwen/Qwen3-300K-A200K-Instruct")
    assert found["general.size_label"] == "345K-A162K"
    assert "general.quantized_by" not in found


def test_a_model_without_any_word_of_itself_is_named_by_its_directory(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "some-model", "qwen3_moe")
    found = general(path, tmp_path / "a.gguf")
    assert found["general.name"] == "Some Model"
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert sum(int(tensor.n_elements) for tensor in tensors) == 542_848
    idle = 3 * 6 * 3 * 64 * 96  # six of eight experts in each of three layers
    assert found["general.size_label"] == f"543K-A{(542_848 - idle) / 1000:.0f}K"


def test_in_a_hub_cache_the_revision_is_no_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-30B-A3B" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    tiny.make(snapshot, "qwen3_moe")
    assert general(snapshot, tmp_path / "a.gguf")["general.name"] == "Qwen3 30B A3B"


@pytest.mark.parametrize(
    "card",
    [
        "---\n: [\n---\n",
        "---\nlicense: {a: 1}\ntags: [1, {b: 2}, null]\nlanguage: no\nversion: 2\n---\n",
        "---\nbase_model: [1, {name: x}]\ndatasets: 3\nname: [a]\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "no front matter",
        "",
        "\udcff",
    ],
)
def test_a_card_that_is_not_well_formed_does_no_harm(
    card: str, named: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in named.iterdir():
        (model / file.name).symlink_to(file)
    (model / "README.md").unlink()
    (model / "README.md").write_bytes(card.encode(errors="surrogateescape"))
    assert general(model, tmp_path / "a.gguf")["general.name"] == NAMED["general.name"]

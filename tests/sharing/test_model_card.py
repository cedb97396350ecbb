"""The cards that compress leaves: read back by the hub's own library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support import sharing
from support.sharing import HUB_ID, SECRET

from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.sharing.model_card import Described, write_card
from tenp_edge.verbs.compress import run_compress
from tenp_edge.version import __version__


def metrics(card: ModelCard) -> dict[tuple[str, str], Any]:
    results = card.data.eval_results or []
    return {(found.dataset_type, found.metric_type): found.metric_value for found in results}


@pytest.mark.parametrize("where", ["README.md", "checkpoint/README.md"])
def test_metrics_are_the_reports_and_the_origin_is_carried_over(where: str, shared: Path) -> None:
    card = ModelCard.load(shared / "out" / where)
    report = json.loads((shared / "out" / "validation.json").read_text())
    overall, found = report["overall"], metrics(card)
    assert found["text", "kl_divergence"] == pytest.approx(overall["mean_kl"], abs=1e-6)
    assert found["text", "same_top_token"] == pytest.approx(overall["same_top"], abs=1e-6)
    assert found["text", "perplexity"] == pytest.approx(overall["candidate_perplexity"], abs=1e-6)
    data = card.data.to_dict()
    assert data["base_model"] == HUB_ID
    assert data["license"] == "other" and data["license_name"] == "tiny-licence"
    assert data["language"] == ["en", "no"]
    assert "private-tag" not in data["tags"]
    assert f"| text | {overall['tokens']} | {overall['mean_kl']:.4f} |" in card.text


def test_a_card_says_what_was_done_and_how_to_run_it(shared: Path) -> None:
    card = ModelCard.load(shared / "out" / "README.md")
    assert card.data.to_dict()["library_name"] == "gguf"
    for part in (
        "# Tiny-30K-A20K-Chat-pruned",
        f"[{HUB_ID}](https://huggingface.co/{HUB_ID}), made smaller by tenp-edge {__version__}.",
        "50.0% of the routed experts' neurons stay",
        "Its weights are stored as Q8_0.",
        "| expert width | 32 to 32 of 64 |",
        'tenp-edge run . -p "Once upon a time"\n',  # the tokenizer has no chat template
        "ollama create tiny-30k-a20k-chat-pruned -f Modelfile",
        "That of the original model: other.",
    ):
        assert part in card.text
    assert (shared / "out" / "LICENSE").read_text() == "the licence"
    assert (shared / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\n")


def test_a_directory_is_called_by_its_whole_name(shared: Path, tmp_path: Path) -> None:
    named = shutil.copytree(shared / "model", tmp_path / "Tiny 1.5-MoE-A2.7B")
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps(config | {"_name_or_path": None}))
    plan = load_plan(shared / "out" / "plan.json")
    made = Described(ModelSource(Checkpoint(named)), plan, None)
    assert made.title == "Tiny 1.5-MoE-A2.7B-pruned"
    (named / "README.md").write_text("---\nmodel_name: its own name\n---\n")
    assert Described(ModelSource(Checkpoint(named)), plan, None).title == "its own name-pruned"
    (named / "README.md").unlink()
    card = write_card(made, tmp_path).read_text()
    assert "tenp-edge run .\n" in card
    assert "ollama create tiny-1.5-moe-a2.7b-pruned -f Modelfile" in card


def test_no_path_and_no_text_is_in_them(shared: Path) -> None:
    for name in ("README.md", "checkpoint/README.md", "Modelfile"):
        text = (shared / "out" / name).read_text()
        assert str(shared) not in text and SECRET not in text


def test_a_card_that_somebody_edited_stays(shared: Path) -> None:
    card = shared / "out" / "README.md"
    before = card.read_text()
    card.write_text(before + "\nMy own words.\n")
    run_compress(shared / "model", shared / "out", sharing.options(shared / "model"))
    assert card.read_text().endswith("My own words.\n")
    card.write_text(before)

"""A model as the hub has it, and what `compress` makes of it: where tests of sharing start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import crashing
import pytest

from tenp_edge.verbs.compress import run_compress

HUB_ID = "somebody/Tiny-30K-A20K-Chat"
CARD = """---
license: other
license_name: tiny-licence
license_link: https://example.org/LICENSE
language: [en, no]
tags: [private-tag]
---
# Tiny
"""
SECRET = "a sentence of private text that must never leave this machine"


def make(directory: Path) -> Path:
    """``directory``/model and ``directory``/out; no process is started to ask what memory it
    takes."""
    model = crashing.write_model(directory / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"_name_or_path": HUB_ID}))
    (model / "README.md").write_text(CARD)
    (model / "LICENSE").write_text("the licence")
    (model / "text.txt").write_text(f"{SECRET}\n" * 200 + (model / "text.txt").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
        run_compress(model, directory / "out", options(model))
    return directory


def options(model: Path) -> crashing.take.CompressOptions:
    """Two samples of the model's text; one expert width."""
    quick = crashing._options(model)
    text = (f"text={model / 'text.txt'}",)
    validation = crashing.take.ValidationOptions(data=text, samples=1, seq_len=32, threads=1)
    plan = replace(quick.plan, layout="merged")
    return replace(quick, plan=plan, no_validate=False, validation=validation)

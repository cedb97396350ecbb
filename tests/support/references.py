"""transformers' own model of a checkpoint: what everything is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging


def reference_model(path: Path, **options: Any) -> Any:
    """The model in ``path``. One that wraps a language model is the whole as transformers has it,
    without its vision part, its layers where other models have them."""
    raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "text_config" not in raw:
        return AutoModelForCausalLM.from_pretrained(path, **options)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # tiny checkpoints have no weights of the vision part
    try:
        whole = AutoModelForImageTextToText.from_pretrained(path, **options)
    finally:
        logging.set_verbosity(before)
    del whole.model.visual
    whole.model.layers = whole.model.language_model.layers
    return whole

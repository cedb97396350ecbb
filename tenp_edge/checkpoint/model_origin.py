"""What lies beside a model's weights: its card, its licences, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

CARD = "README.md"
DEMO = "demo"  # what the bundled model is called wherever a model is taken
# Tokenizers (fast, slow, sentencepiece, tiktoken), generation, chat templates, licences.
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
COPIED = (
    *"tokenizer*.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "
    "*.model *.tiktoken tokenization_*.py generation_config.json preprocessor_config.json "
    "chat_template.jinja chat_template.json additional_chat_templates/*.jinja".split(),
    *LICENCES,
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CACHE = re.compile(r"models--(.+)")
_FENCE = "---"


def base_model(directory: Path, raw: Mapping[str, Any]) -> str | None:
    """The base model's name: a hub id from config.json or the hub cache, or None."""
    stated = raw.get("_name_or_path")
    if isinstance(stated, str) and _HUB_ID.fullmatch(stated):
        return stated
    for part in directory.resolve().parts:
        match = _HUB_CACHE.fullmatch(part)
        if match:
            return match[1].replace("--", "/", 1)
    return None


def display_name(model: Path, raw: Mapping[str, Any] = {}) -> str:
    """What ``model``, a directory or file, is called: by its hub id, from its config.json (``raw``)
    or from the hub's cache, whose own names are hashes; by the name in its card; after itself."""
    path = model.resolve()
    stated = card_data(path).get("model_name")
    named = stated.strip() if isinstance(stated, str) else ""
    return base_model(path, raw) or named or (path.stem if path.is_file() else path.name)


def bundled() -> Path:
    """The model that comes with the package."""
    return Path(str(files("tenp_edge") / "demo_model"))


def spelling(model: Path) -> str | None:
    """How commands name ``model`` on every machine: its hub id, or `DEMO`; None where it has its
    place on this one alone."""
    path = model.resolve()
    return DEMO if path == bundled().resolve() else base_model(path, {})


def card_data(directory: Path) -> dict[str, Any]:
    """The YAML front matter of the model card in ``directory``; nothing where there is no card or
    it cannot be read: what lies beside a model need not be well formed."""
    import yaml  # where a card is read only

    try:
        lines = (directory / CARD).read_text(encoding="utf-8").splitlines()
        if not lines or lines[0].strip() != _FENCE or _FENCE not in lines[1:]:
            return {}
        front = "\n".join(lines[1 : lines.index(_FENCE, 1)]).replace("\t", "  ")
        data = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    known = data.items() if isinstance(data, dict) else ()
    return {key: value for key, value in known if isinstance(key, str)}


def words(value: object) -> list[str]:
    """A value of the front matter that may be one word or a list of them. YAML 1.1 reads Norway's
    ``no`` as false."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    named = ("no" if one is False else str(one) for one in listed if not isinstance(one, dict))
    return [name for name in named if name]


# What a card takes over from the base model's: it binds, or describes, what is made of it too.
_INHERITED = ("license", "license_name", "license_link", "language")


def inherited(directory: Path) -> dict[str, Any]:
    """The base model's licence and languages, by their keys in a card's front matter."""
    data = card_data(directory)
    kept = {key: words(data[key]) for key in _INHERITED if words(data.get(key))}
    return {key: value if len(value) > 1 else value[0] for key, value in kept.items()}


def tags_of(directory: Path) -> list[str]:
    """The tags of a model's card, and what it is for."""
    data = card_data(directory)
    return [*words(data.get("tags")), *words(data.get("pipeline_tag"))]


def front_matter(data: Mapping[str, Any]) -> str:
    """``data`` as the head of a card."""
    import yaml

    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=1000)
    return f"{_FENCE}\n{text}{_FENCE}\n"

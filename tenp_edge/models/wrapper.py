"""Models whose language model is a part: its config stands in config.json under a key of its own.

Vision and audio parts, and the layers that predict further tokens, are left out of every output.
What is written is the language model alone, under the names that it has without the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenp_edge.errors import UserError

_BELONGS = "the config.json that belongs to the checkpoint"
# What the language model takes from the config around it, where its own does not say.
_INHERITED = (
    "dtype",
    "torch_dtype",
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
)
# Says of a language model alone what it was a part of.
WRAPPED_BY = "wrapped_by"
_ROPES = ("rope_scaling", "rope_parameters")
_TIED = "tie_word_embeddings"
_KINDS = {"visi": "the vision part", "visual": "the vision part", "audio": "the audio part"}
_PREDICTION = "multi-token prediction layers"


@dataclass(frozen=True)
class Wrapper:
    """How a family's checkpoint wraps its language model.

    ``text_type``: model_type of the language model's config. ``prefix``: how the names of its
    tensors begin, lm_head's apart, instead of "model.". ``key``: where its config stands.
    ``parts``: keys of the other parts' configs and of their tokens. ``tied``: what transformers
    assumes of tie_word_embeddings, which the config around decides. ``taken``: keys that the
    language model takes from another part, (part's key, key).

    ``alone_type``: the model_type of the language model alone, where transformers has none of
    ``text_type``; its config then says ``implied``, and has the keys ``lifted`` beside its rope's
    keys, where that model type would not know them.
    """

    text_type: str
    parts: tuple[str, ...]
    prefix: str = "model.language_model."
    key: str = "text_config"
    tied: bool = False
    taken: tuple[tuple[str, str], ...] = ()
    alone_type: str | None = None
    implied: Mapping[str, Any] = field(default_factory=dict)
    lifted: tuple[str, ...] = ()


def unwrap(raw: Mapping[str, Any], wrapper: Wrapper) -> dict[str, Any]:
    """The config of the language model in ``raw``, as the file of that model alone would say it.

    Raises UserError where there is none, or one of another kind.
    """
    text = _inside(raw, wrapper)
    if wrapper.alone_type is None:
        return text
    added = {WRAPPED_BY: raw["model_type"], "model_type": wrapper.alone_type, **wrapper.implied}
    for section in _ROPES:
        rope = text.get(section)
        if isinstance(rope, dict):
            added |= {key: rope[key] for key in wrapper.lifted if key in rope}
            text[section] = {key: rope[key] for key in rope if key not in wrapper.lifted}
    return text | added


def _inside(raw: Mapping[str, Any], wrapper: Wrapper) -> dict[str, Any]:
    text = raw.get(wrapper.key)
    if not isinstance(text, dict) or not text:
        raise UserError(
            f"config.json has no {wrapper.key}: {raw['model_type']} wraps a language model, and "
            "this one has none",
            "the config.json and the weights of the whole model",
        )
    kind = text.get("model_type", wrapper.text_type)
    if kind != wrapper.text_type:
        raise UserError(
            f"config.json: {wrapper.key} is of {kind!r}, not of {wrapper.text_type!r}", _BELONGS
        )
    inherited = {key: raw[key] for key in _INHERITED if raw.get(key) is not None}
    taken = {key: (raw.get(part) or {}).get(key) for part, key in wrapper.taken}
    return {
        **inherited,
        **{key: value for key, value in taken.items() if value is not None},
        **text,
        "model_type": wrapper.text_type,
        _TIED: raw.get(_TIED, wrapper.tied),
    }


def own_keys(raw: Mapping[str, Any], wrapper: Wrapper) -> dict[str, Any]:
    """What is in ``raw`` besides the language model's config and the other parts."""
    return {key: value for key, value in raw.items() if key not in (wrapper.key, *wrapper.parts)}


def left_out_kinds(names: Iterable[str]) -> dict[str, int]:
    """What tensors that are no part of the language model belong to, by kind: how many."""
    return dict(sorted(Counter(map(_kind, names)).items()))


def _kind(name: str) -> str:
    return next((kind for word, kind in _KINDS.items() if word in name), _PREDICTION)


def kinds_text(kinds: Mapping[str, int]) -> str:
    """'27 tensors of the vision part, 3 tensors of multi-token prediction layers'."""
    return ", ".join(
        f"{count} tensor{'s' * (count != 1)} of {kind}" for kind, count in kinds.items()
    )

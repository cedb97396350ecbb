"""Special tokens and the chat template, as the tokenizer's and the model's files name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.runtime.directory_vocabulary import begins_alone, flat_config, is_gemma

# GGUF's name of each special token, and Hugging Face's.
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
# What llama.cpp takes for the end of a generation because it is written so.
_KNOWN_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[".split()
)


def special_ids(
    directory: Path, settings: Mapping[str, Any], tokens: Sequence[str]
) -> dict[str, int]:
    """Ids of the special tokens by GGUF's names: tokenizer_config.json names them, else the configs
    number them.

    Where a generation ends at more tokens than at ``eos`` (GLM: at the next user's turn), ``eot``
    and ``eom`` are those of them that llama.cpp does not know by their text.
    """
    numbers = {token: number for number, token in enumerate(tokens)}
    configs = _configs(directory)
    special: dict[str, int] = {}
    for key, hf_key in _SPECIAL.items():
        token = settings.get(f"{hf_key}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in numbers:
            special[key] = numbers[token]
        elif ids := _stated(configs, hf_key, len(tokens)):
            special[key] = ids[0]
    others = (
        number
        for number in _stated(configs, "eos", len(tokens))
        if number != special.get("eos") and tokens[number] not in _KNOWN_ENDS
    )
    return special | dict(zip(("eot", "eom"), dict.fromkeys(others), strict=False))


def _configs(directory: Path) -> list[Mapping[str, Any]]:
    files = (directory / name for name in ("config.json", "generation_config.json"))
    return [flat_config(read_json(file)) for file in files if file.is_file()]


def _stated(configs: Sequence[Mapping[str, Any]], key: str, count: int) -> list[int]:
    """Every id that the configs give the token, in their order."""
    values = (config.get(f"{key}_token_id") for config in configs)
    listed = (value if isinstance(value, list) else [value] for value in values)
    return [
        number
        for ids in listed
        for number in ids
        if isinstance(number, int) and 0 <= number < count
    ]


def adds(
    key: str,
    settings: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    special: Mapping[str, int],
) -> bool:
    """Whether encoding adds the token: the setting, else the post-processor's template."""
    if key not in special:
        return False
    if key == "bos" and is_gemma(settings):
        return True
    stated = settings.get(f"add_{key}_token")
    if isinstance(stated, bool):
        return stated
    if not tokenizer:
        return key == "bos" and begins_alone(settings)
    processor = tokenizer.get("post_processor") or {}
    for node in processor.get("processors", [processor]):
        template = node.get("single") if node.get("type") == "TemplateProcessing" else None
        if template:
            edge = template[0 if key == "bos" else -1]
            return "SpecialToken" in edge
    return False


def chat_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{file} is not UTF-8", "download the tokenizer files again") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, dict))
        named = {entry.get("name"): entry.get("template") for entry in entries}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None

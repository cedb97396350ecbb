"""Ollama's Modelfile for a GGUF that Ollama can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tenp_edge.disk import write_text
from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_template import PROCESS, TemplateError
from tenp_edge.runtime.gguf.header import read_fields
from tenp_edge.sharing.chat_forms import FoundForm, Turn, known_form

FILE = "Modelfile"
STOCK_LAYOUTS = ("merged", "padded")
# PARAMETERs of Ollama, and the fields of a GGUF that recommend them.
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
}
_UNKNOWN = (
    "# The model's chat template is none that Ollama has a translation for here: add a TEMPLATE\n"
    "# in Ollama's own form, or prompts go to the model as they are."
)


def write_modelfile(file: Path, context: int) -> Path:
    """``Modelfile`` beside the GGUF ``file``; ``context``: tokens that it was planned for."""
    target = file.with_name(FILE)
    write_text(target, modelfile(file, context))
    return target


def modelfile(file: Path, context: int) -> str:
    """`ollama create NAME -f Modelfile` makes a model of it."""
    fields = read_fields(file)
    template, found = fields.get("tokenizer.chat_template"), None
    if isinstance(template, str):
        found = _form(template, fields)
    return "\n".join(_lines(file.name, context, fields, found)) + "\n"


def _lines(
    name: str, context: int, fields: dict[str, Any], found: FoundForm | None
) -> Iterator[str]:
    yield f"FROM ./{name}"
    if found is not None:
        yield f"TEMPLATE {_quoted(found.form.template)}"
        if found.system is not None:
            yield f"SYSTEM {_quoted(found.system)}"
    elif "tokenizer.chat_template" in fields:
        yield _UNKNOWN
    yield f"PARAMETER num_ctx {context}"
    for stop in () if found is None else found.form.stop:
        yield f'PARAMETER stop "{stop}"'
    for parameter, key in _SAMPLING.items():
        value = fields.get(key)
        if isinstance(value, (int, float)):
            yield f"PARAMETER {parameter} {value:g}"
    licence = fields.get("general.license")
    if isinstance(licence, str):
        yield f"LICENSE {_quoted(licence)}"


def _quoted(text: str) -> str:
    """Three quotation marks cannot stand inside; no template or prompt of a known form has them."""
    return f'"""{text}"""'


def _form(template: str, fields: dict[str, Any]) -> FoundForm | None:
    tokens = list(fields["tokenizer.ggml.tokens"].values())

    def special(name: str) -> str:
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(number, int) or number >= len(tokens):
            return ""
        return str(tokens[number].decode(errors="replace"))

    begin = special("bos")

    def render(turns: Sequence[Turn]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        words = {"bos_token": begin, "eos_token": special("eos"), "add_generation_prompt": True}
        return PROCESS.render(template, {"messages": messages, **words}).removeprefix(begin)

    try:
        found = known_form(render)
    except (TemplateError, UserError):
        return None
    system = None if found is None else found.system
    return None if system is not None and '"""' in system else found

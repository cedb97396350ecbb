"""Modelfiles: a TEMPLATE only where it writes what the model's own template does."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
import pytest
from support.gguf_cases import export

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.sharing.chat_forms import FORMS, ChatForm, Turn, known_form
from tenp_edge.sharing.modelfile import modelfile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
)
THINKING = CHATML + "<think>\n"
TRIMMED = CHATML.replace("m.content", "m.content | trim")


def rendered(template: str, turns: Sequence[Turn]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return jinja2.Template(template, keep_trailing_newline=True).render(messages=messages)


@pytest.mark.parametrize(
    ("template", "name", "system"),
    [
        (CHATML, "chatml", None),
        (TRIMMED, "chatml", None),
        (WITH_DEFAULT, "chatml", "Be kind."),
        (THINKING, None, None),
        ("{{ messages[-1].content }}", None, None),
    ],
)
def test_a_form_is_known_by_what_it_writes(
    template: str, name: str | None, system: str | None
) -> None:
    found = known_form(lambda turns: rendered(template, turns))
    assert (None if found is None else found.form.name) == name
    assert (None if found is None else found.system) == system


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_knows_itself_alone(form: ChatForm) -> None:
    found = known_form(form.render)
    assert found is not None and found.form is form and found.system is None
    assert all(stop in form.template for stop in form.stop)


def test_the_demo_models_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    model = Path(str(files("tenp_edge") / "demo_model"))
    export(ModelSource(Checkpoint(model)), file, "Q8_0", "merged")
    made = modelfile(file, 1024)
    assert made.startswith('FROM ./model.gguf\nTEMPLATE """{{- if .System }}<|im_start|>system\n')
    assert made.endswith(
        '<|im_start|>assistant\n"""\nPARAMETER num_ctx 1024\nPARAMETER stop "<|im_start|>"\n'
        'PARAMETER stop "<|im_end|>"\nLICENSE """apache-2.0"""\n'
    )

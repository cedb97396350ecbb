"""Chat templates that Ollama can be told: known forms, found by what a model's own template writes.

Ollama does not run a GGUF's Jinja template. It compares the text with a list of its own and takes
the nearest within 99 edits; for any other the prompt goes to the model as it is (ollama/ollama,
template/template.go, `Named`). So a Modelfile has to carry a Go template, and it may only where
that writes just what the model's own does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Turn = tuple[str, str]  # role and content
Render = Callable[[Sequence[Turn]], str]


@dataclass(frozen=True)
class ChatForm:
    """A way to write a conversation: ``turns``, how each role's message is written (the BOS token
    is the runtime's); ``answer``: what the model continues; ``template``: the same in Go's form, as
    Ollama takes it; ``stop`` ends an answer."""

    name: str
    turns: dict[str, str]
    answer: str
    template: str
    stop: tuple[str, ...]

    def render(self, turns: Sequence[Turn]) -> str:
        written = (self.turns[role].replace("%s", content) for role, content in turns)
        return "".join(written) + self.answer


_CHATML = ChatForm(
    "chatml",
    {role: f"<|im_start|>{role}\n%s<|im_end|>\n" for role in ("system", "user", "assistant")},
    "<|im_start|>assistant\n",
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{- if ne .Role "system" }}<|im_start|>{{ .Role }}\n'
    "{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n",
    ("<|im_start|>", "<|im_end|>"),
)
_LLAMA3 = ChatForm(
    "llama3",
    {
        role: f"<|start_header_id|>{role}<|end_header_id|>\n\n%s<|eot_id|>"
        for role in ("system", "user", "assistant")
    },
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "{{- if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>"
    '{{- end }}{{- range .Messages }}{{- if ne .Role "system" }}<|start_header_id|>{{ .Role }}'
    "<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{- end }}{{- end }}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
_GRANITE = ChatForm(
    "granite",
    {
        role: f"<|start_of_role|>{role}<|end_of_role|>%s<|end_of_text|>\n"
        for role in ("system", "user", "assistant")
    },
    "<|start_of_role|>assistant<|end_of_role|>",
    "{{- if .System }}<|start_of_role|>system<|end_of_role|>{{ .System }}<|end_of_text|>\n{{ end }}"
    '{{- range .Messages }}{{- if ne .Role "system" }}<|start_of_role|>{{ .Role }}<|end_of_role|>'
    "{{ .Content }}<|end_of_text|>\n{{ end }}{{ end }}<|start_of_role|>assistant<|end_of_role|>",
    ("<|start_of_role|>", "<|end_of_text|>"),
)
FORMS = (_CHATML, _LLAMA3, _GRANITE)

_MARK = "tenp-edge system prompt"
_QUESTION = [("user", "First question?")]
_DIALOGUE = [*_QUESTION, ("assistant", "An answer."), ("user", "Second question?")]


@dataclass(frozen=True)
class FoundForm:
    """``system``: what the model's template says of its own accord where the user says nothing."""

    form: ChatForm
    system: str | None = None


def known_form(render: Render) -> FoundForm | None:
    """The one form that writes what ``render`` (the model's own template) writes; None where it is
    none of them, or not all that is tried comes out the same."""
    found = [known for form in FORMS if (known := _as_form(form, render)) is not None]
    return found[0] if len(found) == 1 else None


def _as_form(form: ChatForm, render: Render) -> FoundForm | None:
    alone = render(_QUESTION)
    if alone == form.render(_QUESTION):
        system = None
    else:
        system = _own_system(form, alone)
        if system is None:
            return None
    before = [] if system is None else [("system", system)]
    if render(_DIALOGUE) != form.render([*before, *_DIALOGUE]):
        return None
    asked = [("system", _MARK), *_DIALOGUE]
    if render(asked) != form.render(asked):
        return None
    return FoundForm(form, system)


def _own_system(form: ChatForm, alone: str) -> str | None:
    """The system prompt that stands before ``_QUESTION`` in ``alone``, if that is all there is."""
    first, last = form.render([("system", _MARK), *_QUESTION]).split(_MARK)
    if not (alone.startswith(first) and alone.endswith(last)):
        return None
    system = alone[len(first) : len(alone) - len(last)]
    return system if form.render([("system", system), *_QUESTION]) == alone else None

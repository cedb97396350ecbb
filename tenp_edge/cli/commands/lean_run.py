"""`tenp-edge run`: a file opened, and text written as it comes. Loads nothing that it does not use:
what this module imports is in memory to the end of every run (`runtime.memory.peak` counts it)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenp_edge.cli.chat import streams
from tenp_edge.cli.chat.answers import JsonScreen, Screen, Summary, TextScreen
from tenp_edge.cli.chat.talk import Talk, continue_text, template_variables
from tenp_edge.cli.output.notes import note
from tenp_edge.cli.output.readers import reader_has_left
from tenp_edge.errors import UserError
from tenp_edge.runtime.locating import runnable
from tenp_edge.runtime.opening import RunOptions, model_bytes, open_model
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.units import format_size

_INTERRUPTED = 130  # 128 and the number of SIGINT
_RAW_PROMPT = '-p "Once upon a time"'


def run(
    file: Path,
    *,
    prompt: str | None,
    chat: bool,
    raw: bool,
    json: bool,
    system: str | None,
    no_thinking: bool,
    chat_template_kwargs: str | None,
    no_history: bool,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    context: int | None,
    threads: int | None,
    ubatch: int | None,
    kv_type: str | None,
    gpu_layers: int,
    no_prepack: bool,
) -> None:
    """Continue a text, answer a message, or converse; the text goes to stdout, the rest to stderr.

    The parameters are the flags of `lean_flags.RUN`. Raises UserError for what cannot be run.
    """
    file = runnable(file)
    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    sampling.check()
    prompt, system = (
        text if text is None else streams.as_text(text, name)
        for text, name in ((prompt, "--prompt"), (system, "--system"))
    )
    chatting = _Chatting(chat, system, no_thinking, chat_template_kwargs, no_history)
    prompt = _prompt(prompt, chatting, raw, json)
    options = RunOptions(
        context, threads, ubatch, kv_type, gpu_layers=gpu_layers, prepack=not no_prepack, note=note
    )
    try:
        out = streams.output()
        screen: Screen = JsonScreen(out) if json else TextScreen(out)
        with open_model(file, options) as session:
            note(f"{file.name}, {format_size(model_bytes(file))}, in {session.runtime}")
            last: Summary | None
            if raw or not _can_chat(session, file, prompt, chatting):
                assert prompt is not None
                last = continue_text(session, prompt, sampling, max_tokens, screen, note)
            else:
                last = chatting.talk(session, prompt, sampling, max_tokens, screen)
        if last is not None and last.finish == "interrupted":
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        raise reader_has_left() from None


@dataclass(frozen=True)
class _Chatting:
    """The flags that mean something with a chat template only."""

    chat: bool
    system: str | None
    no_thinking: bool
    variables: str | None
    no_history: bool

    def given(self) -> list[str]:
        """Those that cannot be followed without one."""
        flags = {
            "--chat": self.chat,
            "--system": self.system is not None,
            "--no-thinking": self.no_thinking,
            "--chat-template-kwargs": self.variables is not None,
        }
        return [flag for flag, given in flags.items() if given]

    def talk(
        self,
        session: Session,
        first: str | None,
        sampling: SamplingOptions,
        most: int | None,
        screen: Screen,
    ) -> Summary | None:
        """Answer ``first``, and where it is a conversation, what follows; the answer's summary
        where it was the only one."""
        template = session.vocabulary.chat_template or ""
        variables = template_variables(template, self.variables, self.no_thinking, note)
        talk = Talk(session, sampling, most, self.system, variables, screen, note)
        if first is not None:
            if not self.chat:
                note("one message, in the model's chat template; --raw continues the text as it is")
            answered = talk.say(first)
            if not (self.chat and streams.typed()):
                return answered
        talk.converse(self.no_history)
        return None


def _prompt(prompt: str | None, chatting: _Chatting, raw: bool, json: bool) -> str | None:
    """What is to be said first: ``prompt``, or what is piped in; None for a conversation.

    Raises UserError for flags that exclude each other, and where there is nothing to say.
    """
    if raw and chatting.given():
        flag = chatting.given()[0]
        raise UserError(f"{flag} is for conversations, and --raw has none", f"without {flag}")
    if prompt is None and not streams.typed() and not chatting.chat:
        prompt = streams.piped_text()
        if not raw:
            prompt = prompt.rstrip("\n")  # which `echo` adds
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty", "-p with some text")
    if prompt is None and streams.typed() and (raw or json):
        why = "--json is for programs" if json else "--raw continues a text"
        raise UserError(f"there is no prompt: {why}", _RAW_PROMPT)
    return prompt


def _can_chat(session: Session, file: Path, prompt: str | None, chatting: _Chatting) -> bool:
    """Whether ``file`` has a chat template. Raises UserError where one is needed and missing."""
    if session.vocabulary.chat_template is not None:
        return True
    if given := chatting.given():
        raise UserError(
            f"{file.name} has no chat template, which {given[0]} needs", f"without {given[0]}"
        )
    if prompt is None:
        raise UserError(
            f"{file.name} has no chat template: it continues texts, and does not converse",
            _RAW_PROMPT,
        )
    return False

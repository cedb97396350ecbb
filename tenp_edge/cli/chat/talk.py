"""A continuation, one message, or a conversation."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any

from tenp_edge.cli.chat import answers
from tenp_edge.cli.chat.answers import JsonScreen, Note, Screen, Summary
from tenp_edge.cli.chat.streams import typed
from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import generate
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.thinking import Part, Reply, Spoken, switch_of


def continue_text(
    session: Session,
    prompt: str,
    sampling: SamplingOptions,
    most: int | None,
    screen: Screen,
    note: Note,
) -> Summary:
    """Write what follows ``prompt``; Ctrl-C ends it. ``most``: tokens, as -n says."""
    tokens = session.tokenize(prompt)

    def spoken() -> Generator[Spoken, None, None]:
        for piece in generate(session, tokens, sampling, most):
            yield Spoken(piece, [Part("content", piece.text)] if piece.text else [])

    return answers.write(Reply(len(tokens), spoken()), screen, note, session.context, most)


class Talk:
    """A conversation and how it is written. The parameters are those of `Conversation`."""

    def __init__(
        self,
        session: Session,
        sampling: SamplingOptions,
        most: int | None,
        system: str | None,
        variables: Mapping[str, Any],
        screen: Screen,
        note: Note,
    ) -> None:
        from tenp_edge.runtime.conversation import Conversation  # and with it, subprocesses

        self._conversation = Conversation(
            session, sampling, most, system, variables=variables, note=note
        )
        self._context, self._most, self._screen, self._note = session.context, most, screen, note

    def say(self, text: str) -> Summary:
        """Answer one message. Raises UserError where it cannot be."""
        return self._write(self._conversation.say(text))

    def converse(self, no_history: bool) -> None:
        """Answer every line; Ctrl-C ends an answer, or the conversation where there is none, Ctrl-D
        the conversation. What cannot be answered is refused, and it goes on."""
        from tenp_edge.cli.chat import commands
        from tenp_edge.cli.chat.history import history_file
        from tenp_edge.cli.chat.lines import PlainLines, lines

        source = lines(commands.words(), None if no_history else history_file())
        if typed():
            self._note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
        while (text := source.ask()) is not None:
            if not text.strip():
                continue
            try:
                reply = self._heeded(text)
            except commands.Left:
                return
            except KeyboardInterrupt:
                source.forget()
                self._note("stopped")  # before there was an answer
            except UserError as error:
                self._refuse(error)
            else:
                if self._answer(reply) == "interrupted":
                    source.forget()
        if typed() and isinstance(source, PlainLines):
            self._note("")  # The prompt stands on the line.

    def _heeded(self, text: str) -> Reply | None:
        """The answer that ``text`` begins; commands are typed, a pipe has none."""
        from tenp_edge.cli.chat import commands

        if typed() and commands.is_command(text):
            return commands.run(text, self._conversation, self._note)
        return self._conversation.say(text)

    def _answer(self, reply: Reply | None) -> str | None:
        """Write it, and how it finished; one Ctrl-C ends the answer, another that comes meanwhile
        the conversation."""
        try:
            return None if reply is None else self._write(reply).finish
        except UserError as error:
            self._refuse(error)
        return None

    def _write(self, reply: Reply) -> Summary:
        return answers.write(reply, self._screen, self._note, self._context, self._most)

    def _refuse(self, error: UserError) -> None:
        if isinstance(self._screen, JsonScreen):
            self._screen.refused(error.message)
        self._note(f"error: {error.message}")
        if error.hint:
            self._note(f"try:   {error.hint}")


def template_variables(
    template: str, raw: str | None, no_thinking: bool, note: Note
) -> dict[str, Any]:
    """What the template is told: ``raw`` is JSON. Raises UserError where it is no object."""
    variables = _object(raw) if raw is not None else {}
    if no_thinking:
        switch = switch_of(template)
        if switch is None:
            note("--no-thinking changes nothing: the chat template does not ask for it")
        else:
            variables[switch] = False
    return variables


def _object(raw: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"--chat-template-kwargs is {raw!r}, not a JSON object",
            """--chat-template-kwargs '{"enable_thinking": false}'""",
        )
    return found

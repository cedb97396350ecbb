"""Conversations of a tiny model: what is remembered, what fits, what is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chatting import counting, make_file

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_prompt import chat_prompt
from tenp_edge.runtime.conversation import Conversation
from tenp_edge.runtime.generation import prompt_tokens
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.thinking import Reply

GREEDY = SamplingOptions(temperature=0.0)


@pytest.fixture(scope="module")
def session(chat_file: Path) -> Iterator[Session]:
    with open_model(chat_file, RunOptions(128, 1, kv_type="F32")) as opened:
        yield opened


def text_of(reply: Reply) -> str:
    return "".join(part.text for spoken in reply.spoken for part in spoken.parts)


def roles(conversation: Conversation) -> list[str]:
    return [message["role"] for message in conversation.messages]


def test_it_remembers_and_uses_the_cache(session: Session) -> None:
    talk = Conversation(session, GREEDY, 4, "S")
    first = text_of(talk.say("Hi"))
    assert roles(talk) == ["system", "user", "assistant"]
    assert talk.messages[-1]["content"] == first
    with counting(session) as seen:
        text_of(talk.say("So"))
    whole = chat_prompt(session.vocabulary, talk.messages[:-1]).text
    assert 0 < sum(seen) < len(prompt_tokens(session, whole)), "the cache was not used"


def test_another_answer_takes_the_place_of_the_last(session: Session) -> None:
    talk = Conversation(session, GREEDY, 4)
    with pytest.raises(UserError, match="there is no answer yet"):
        talk.regenerate()
    first = text_of(talk.say("Hi"))
    second = talk.messages
    text_of(talk.say("So"))
    again = talk.turns[-1]
    text_of(talk.regenerate())
    assert talk.turns[-1] == again and talk.messages[:2] == second
    talk.turns = talk.turns[:1]
    assert text_of(talk.regenerate()) == first


def test_a_full_context_forgets_the_oldest_turns(session: Session) -> None:
    said: list[str] = []
    talk = Conversation(session, GREEDY, 8, "Be brief", note=said.append)
    for number in range(12):
        reply = talk.say(f"question {number}")
        assert reply.prompt_tokens <= 128
        text_of(reply)
        assert roles(talk)[0] == "system" and talk.turns[-1].asked["content"].endswith(str(number))
    assert 0 < len(talk.turns) < 8
    assert said and set(said) <= {
        "the context is full: the oldest turn is forgotten",
        *(f"the context is full: the {n} oldest turns are forgotten" for n in range(2, 9)),
    }
    assert len(said) < 6, "it forgot a little at every question: nothing is left of the cache then"


def test_one_message_that_is_too_long_is_refused(session: Session) -> None:
    talk = Conversation(session, GREEDY, 4)
    text_of(talk.say("Hi"))
    before = talk.messages
    with pytest.raises(UserError) as error:
        talk.say("word " * 200)
    tokens = len(prompt_tokens(session, f"<user>{'word ' * 200}\n<assistant>"))
    assert str(error.value) == (
        f"the message has {tokens} tokens with its template, the context holds 128\n"
        "try: a shorter message, or a larger --context"
    )
    assert talk.messages == before
    text_of(talk.say("So"))
    assert len(talk.turns) == 2


def test_what_was_answered_before_an_interruption_stays(session: Session) -> None:
    talk = Conversation(session, GREEDY, 40)
    reply = talk.say("Hi")
    begun = "".join(part.text for _ in range(6) for part in next(reply.spoken).parts)
    reply.spoken.close()
    assert begun and talk.messages[-1] == {"role": "assistant", "content": begun}
    early = talk.say("So")
    early.spoken.close()
    assert len(talk.turns) == 1, "a question without an answer is not remembered"


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    "<assistant>{{ '<think></think>' if enable_thinking is defined and not enable_thinking "
    "else '<think>\n' }}"
)


def test_thoughts_are_not_sent_back(tmp_path: Path) -> None:
    with open_model(make_file(tmp_path, THINKING), RunOptions(256, 1, kv_type="F32")) as session:
        talk = Conversation(session, GREEDY, 4)
        parts = [part for spoken in talk.say("Hi").spoken for part in spoken.parts]
        assert parts and all(part.thinking for part in parts), "the template opened it"
        assert talk.messages[-1]["content"] == f"<think>\n{text(parts)}\n</think>"
        again = [*talk.messages, {"role": "user", "content": ""}]
        rendered = chat_prompt(session.vocabulary, again).text
        assert rendered == "<user>Hi\n<assistant>\n<user>\n<assistant><think>\n"
        plain = Conversation(session, GREEDY, 4, variables={"enable_thinking": False})
        parts = [part for spoken in plain.say("Hi").spoken for part in spoken.parts]
        assert not any(part.thinking for part in parts)


def text(parts: list) -> str:  # type: ignore[type-arg]
    return "".join(part.text for part in parts)

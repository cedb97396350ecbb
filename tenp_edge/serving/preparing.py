"""From a request to work: prompts rendered and tokenised, grammars compiled.

It runs in the thread of `Service.preparing`, so that a long prompt stops neither the event loop nor
the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_formats.answer_grammar import AnswerGrammar
from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_formats.reading import AnswerReader
from tenp_edge.runtime.chat_prompt import ChatPrompt, chat_prompt
from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.grammars import GrammarSource
from tenp_edge.serving.answers.answer import Answer
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.answers.openai import ChatAnswer, CompletionAnswer, Echo
from tenp_edge.serving.prompts import size
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.schemas.openai import ChatRequest, CompletionRequest, Prompt
from tenp_edge.serving.service import Service
from tenp_edge.serving.worker import Work

# What makes an API's answer of choices, for a prompt of so many tokens.
Spelling = Callable[[Sequence[Choice], int], Answer]


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to run: a job for every choice of its answer."""

    works: Sequence[Work]
    answer: Answer


# -- completions -----------------------------------------------------------------------------------


def prepare_completion(service: Service, request: CompletionRequest) -> Prepared:
    """Every prompt ``n`` times. Raises RefusalError."""
    prompts = request.prompts()
    tokens = [service.prompts.tokens(prompt) for prompt in prompts]
    sampling = service.sampling_of(request, request.told, request.grammar_source())
    count = request.n or 1
    works = [
        service.work(request, prompt, sampling, index, request.told if request.echo else None)
        for prompt in tokens
        for index in range(count)
    ]
    echoed = [_echo(service, request, work, prompts[i // count]) for i, work in enumerate(works)]
    answer = CompletionAnswer(
        [Choice(silent=request.wanted_tokens() == 0) for _ in works],
        sum(map(len, tokens)),
        service.named(request.model),
        service.vocabulary,
        request.with_usage,
        echoed=echoed,
    )
    return Prepared(works, answer)


def _echo(service: Service, request: CompletionRequest, work: Work, prompt: Prompt) -> Echo:
    """The prompt as the answer repeats it, where it is asked to."""
    if not request.echo:
        return Echo()
    text = prompt if isinstance(prompt, str) else service.vocabulary.detokenize(prompt)
    pieces = [] if request.told is None else [Piece(token, "") for token in work.prompt]
    return Echo(text, pieces)


# -- chats -----------------------------------------------------------------------------------------


def prepare_chat(
    service: Service, request: ChatRequest, spelling: Spelling | None = None
) -> Prepared:
    """A conversation, to be answered ``n`` times. Raises RefusalError."""
    tools = request.usable_tools()
    prompt = rendered(service, request)
    tokens = service.prompts.chat_tokens(prompt.text)
    sampling = service.sampling_of(
        request,
        request.told,
        _grammar(request, prompt, tools),
        frozenset(prompt.control.values()),
        "tools" if request.must_call else "response_format",
    )
    count = request.n or 1
    works = [service.work(request, tokens, sampling, index) for index in range(count)]
    choices = [_choice(request, prompt, tools) for _ in works]
    if spelling is not None:
        return Prepared(works, spelling(choices, len(tokens)))
    name = service.named(request.model)
    answer = ChatAnswer(choices, len(tokens), name, service.vocabulary, request.with_usage)
    return Prepared(works, answer)


def rendered(service: Service, request: ChatRequest) -> ChatPrompt:
    """The conversation in the words of the model's template. Raises RefusalError."""
    messages = [message.plain() for message in request.messages]
    service.prompts.check_size(sum(size(each["content"]) for each in messages), "messages")
    begun = _begun(messages)
    asked = messages[:-1] if begun else messages
    try:
        prompt = chat_prompt(service.vocabulary, asked, request.usable_tools(), request.variables())
    except UserError as error:
        raise RefusalError.of(error, 400, "invalid_value", "messages") from None
    return replace(prompt, text=prompt.text + begun)


def _begun(messages: Sequence[dict[str, Any]]) -> str:
    """How the answer begins: what stands in a last message of the model's, which it goes on from,
    as with llama-server and Anthropic."""
    last = messages[-1]
    alone = len(messages) == 1 or "tool_calls" in last
    return "" if last["role"] != "assistant" or alone else str(last["content"])


def _choice(request: ChatRequest, prompt: ChatPrompt, tools: Sequence[Tool]) -> Choice:
    reader = AnswerReader(prompt.form, prompt.thinking, tools, prompt.text)
    silent = request.wanted_tokens() == 0
    return Choice(reader, single=request.parallel_tool_calls is False, silent=silent)


def _grammar(
    request: ChatRequest, prompt: ChatPrompt, tools: Sequence[Tool]
) -> GrammarSource | None:
    """What the answer must be, if anything: calls, or text of a form."""
    grammar = AnswerGrammar(prompt.form, prompt.thinking, prompt.text, prompt.control)
    parallel = request.parallel_tool_calls is not False
    if request.must_call:
        return grammar.calls(tools, parallel)
    source = request.grammar_source()
    try:
        return None if source is None else grammar.text(source, tools, parallel)
    except UserError as error:
        raise RefusalError.of(error, 400, "invalid_grammar", "response_format") from None

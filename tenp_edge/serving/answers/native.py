"""llama-server's own answers: /completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.serving.answers.answer import Answer, Body, event
from tenp_edge.serving.answers.choice import Choice, Delta
from tenp_edge.serving.answers.logprobs import chat_entry
from tenp_edge.serving.worker import Work


class NativeAnswer(Answer):
    """One object, or a list of them where there are several prompts."""

    def __init__(
        self,
        choices: Sequence[Choice],
        model: str,
        vocabulary: Vocabulary,
        works: Sequence[Work],
        with_tokens: bool,
    ) -> None:
        super().__init__(choices, sum(len(work.prompt) for work in works))
        self._model, self._vocabulary = model, vocabulary
        self._works, self._with_tokens = works, with_tokens

    def events(self, index: int, delta: Delta) -> list[str]:
        choice = self.choices[index]
        if choice.silent:
            return [event(self._ended(index, choice))]
        body: Body = {
            "index": index,
            "content": delta.content,
            "tokens": [delta.piece.token],
            "stop": False,
            "id_slot": choice.slot,
            "tokens_predicted": choice.tokens,
            "tokens_evaluated": len(self._works[index].prompt),
        }
        if delta.piece.logprobs is not None:
            body["completion_probabilities"] = [chat_entry(self._vocabulary, delta.piece)]
        if delta.finish is None:
            return [event(body)]
        return [event(body), event(self._ended(index, choice) | {"content": "", "tokens": []})]

    def whole(self) -> Any:
        bodies = [self._ended(index, choice) for index, choice in enumerate(self.choices)]
        return bodies[0] if len(bodies) == 1 else bodies

    def _ended(self, index: int, choice: Choice) -> Body:
        work = self._works[index]
        body: Body = {
            "index": index,
            "content": choice.content,
            "tokens": [piece.token for piece in choice.pieces] if self._with_tokens else [],
            "id_slot": choice.slot,
            "stop": True,
            "model": self._model,
            "tokens_predicted": choice.tokens,
            "tokens_evaluated": len(work.prompt),
            "tokens_cached": choice.cached_tokens,
            "generation_settings": settings(work.sampling, work.max_tokens, work.stops),
            "prompt": self._vocabulary.detokenize(work.prompt),
            "has_new_line": "\n" in choice.content,
            "truncated": choice.finish == "length" and choice.tokens < work.max_tokens,
            "stop_type": _stop_type(choice),
            "stopping_word": choice.word or "",
            "timings": self.usage.timings(),
        }
        told = [chat_entry(self._vocabulary, piece) for piece in choice.pieces if piece.logprobs]
        return body | {"completion_probabilities": told} if told else body


def _stop_type(choice: Choice) -> str:
    if choice.finish == "length":
        return "limit"
    return "eos" if choice.word is None else "word"


def settings(sampling: SamplingOptions, most: int, stops: Sequence[str] = ()) -> Body:
    """The sampling under llama-server's names. ``most``: tokens of an answer, or -1."""
    names = (
        "temperature top_k top_p min_p typical_p repeat_penalty repeat_last_n presence_penalty "
        "frequency_penalty"
    )
    found = {name: getattr(sampling, name) for name in names.split()}
    return {
        **found,
        "seed": -1 if sampling.seed is None else sampling.seed,
        "stop": [*stops],
        "n_predict": most,
        "max_tokens": most,
        "n_probs": sampling.logprobs or 0,
        "samplers": ["penalties", "top_k", "typ_p", "top_p", "min_p", "temperature"],
    }

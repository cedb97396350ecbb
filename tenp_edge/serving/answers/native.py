"""llama-server's own answers: /completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.serving.answers.answer import Answer, Body, event
from tenp_edge.serving.answers.choice import Choice, Delta
from tenp_edge.serving.answers.logprobs import chat_entry


class NativeAnswer(Answer):
    """One object, or a list of them where there are several prompts."""

    def __init__(
        self,
        choices: Sequence[Choice],
        prompt_tokens: Sequence[int],
        model: str,
        vocabulary: Vocabulary,
        sampling: SamplingOptions,
        with_tokens: bool,
    ) -> None:
        super().__init__(choices, sum(prompt_tokens))
        self._counts, self._model, self._vocabulary = prompt_tokens, model, vocabulary
        self._sampling, self._with_tokens = sampling, with_tokens

    def events(self, index: int, delta: Delta) -> list[str]:
        choice = self.choices[index]
        body: Body = {
            "index": index,
            "content": delta.content,
            "tokens": [delta.piece.token],
            "stop": False,
            "id_slot": 0,
            "tokens_predicted": choice.tokens,
            "tokens_evaluated": self._counts[index],
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
        body: Body = {
            "index": index,
            "content": choice.content,
            "tokens": [piece.token for piece in choice.pieces] if self._with_tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": self._model,
            "tokens_predicted": choice.tokens,
            "tokens_evaluated": self._counts[index],
            "generation_settings": settings(self._sampling),
            "truncated": False,
            "stop_type": self._stop_type(choice),
            "timings": self.usage.timings(),
        }
        told = [chat_entry(self._vocabulary, piece) for piece in choice.pieces if piece.logprobs]
        return body | {"completion_probabilities": told} if told else body

    def _stop_type(self, choice: Choice) -> str:
        if choice.finish == "length":
            return "limit"
        return "eos" if self._vocabulary.ends(choice.pieces[-1].token) else "word"


def settings(sampling: SamplingOptions) -> Body:
    """The sampling under llama-server's names."""
    names = (
        "temperature top_k top_p min_p typical_p repeat_penalty repeat_last_n presence_penalty "
        "frequency_penalty"
    )
    found = {name: getattr(sampling, name) for name in names.split()}
    return {**found, "seed": -1 if sampling.seed is None else sampling.seed}

"""What the judges of the formats share: the same model as the reference, run as a `Session`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import JudgeRequest
from tenp_edge.runtime.session import Session

_TOKENIZER_SAMPLE = 256
_HINT = "the reference that this model was pruned from"


def require_family(path: Path, reference: str, stored: object) -> None:
    """UserError unless the model types are the same."""
    if reference != stored:
        raise UserError(f"{path} is another model: {stored}, the reference is {reference}", _HINT)


def require_sizes(path: Path, sizes: Mapping[str, tuple[int, int | None]]) -> None:
    """UserError unless every name has the same size twice: the reference's and the file's."""
    for name, (ours, theirs) in sizes.items():
        if ours != theirs:
            raise UserError(
                f"{path} is another model: its {name} is {theirs}, the reference has {ours}", _HINT
            )


def session_logits(
    open_session: Callable[[], AbstractContextManager[Session]], request: JudgeRequest
) -> Callable[[], AbstractContextManager[Iterator[torch.Tensor]]]:
    """`Judge.open` of a model that runs as a session."""

    @contextmanager
    def opened() -> Iterator[Iterator[torch.Tensor]]:
        with open_session() as session:
            yield _logits(session, request)

    return opened


def _logits(session: Session, request: JudgeRequest) -> Iterator[torch.Tensor]:
    for tokens, length in zip(request.tokens, request.lengths, strict=True):
        yield torch.from_numpy(session.logits(tokens[:length].tolist(), request.first))


def tokenizers_agree(session: Session, request: JudgeRequest) -> bool:
    """Whether the model's own tokenizer gives the reference's ids for a piece of every domain."""
    tokenizer = load_tokenizer(request.reference.checkpoint.path)
    for span in request.spans.values():
        ids = request.tokens[span.start, : request.lengths[span.start]][:_TOKENIZER_SAMPLE]
        text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        if session.tokenize(text, add_special=False) != expected:
            return False
    return True

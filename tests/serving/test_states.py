"""Requests to a model that carries a state: none reads what another left behind."""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support import tiny
from support.runtime_cases import CheckpointOf, export_ragged
from support.serving_cases import together

from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.worker import Job, Work, Worker

LAYOUTS: dict[str, Callable[..., Session]] = {
    "per-expert": PerExpertModel,
    "padded": LlamaCppModel,
}
SYSTEM = torch.randint(1, 370, (40,), generator=torch.Generator().manual_seed(3)).tolist()
# Conversations of one beginning, one of them twice, and others.
PROMPTS = [
    [*SYSTEM, 5, 6, 7],
    [*SYSTEM, 9, 9],
    [*SYSTEM, 5, 6, 7],
    [*SYSTEM[:20], 3],
    [4, 5, 6],
    [*SYSTEM, 9, 9, 1, 2],
]


def answer(worker: Worker, prompt: list[int]) -> list[int]:
    pieces: queue.Queue[Piece | Exception] = queue.Queue()
    worker.reserve()
    sampling = SamplingOptions(temperature=0.0)
    worker.submit(Job(Work(tuple(prompt), sampling, 8), pieces.put))
    tokens: list[int] = []
    while True:
        piece = pieces.get(timeout=60)
        assert isinstance(piece, Piece), piece
        tokens.append(piece.token)
        if piece.finish is not None:
            return tokens


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_many_at_once_read_what_each_alone_would(
    family: str, layout: str, parallel: int, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    export_ragged(checkpoint_of(family), file, "F32", layout)
    settings = {"context": 256, "threads": 1, "kv_type": "F32", "ubatch": 16}
    with LAYOUTS[layout](file, **settings, parallel=parallel) as session:
        worker = Worker(session, len(PROMPTS))
        alone = []
        for prompt in PROMPTS:
            for slot in session.slots:
                session.reset(0, slot)
            alone.append(answer(worker, prompt))
        assert len({tuple(tokens) for tokens in alone}) > 2
        for _ in range(2):
            assert together(*(partial(answer, worker, prompt) for prompt in PROMPTS)) == alone
        worker.close()

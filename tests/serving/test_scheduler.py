"""Continuous batching: who is evaluated when, in which slot, and that nobody reads another's."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.runtime_cases import CheckpointOf, export_ragged

from tenp_edge.runtime.generation import Piece, generate
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.scheduler import Run, Scheduler
from tenp_edge.serving.worker import Job, Work, Worker

GREEDY = SamplingOptions(temperature=0.0)
TEXT = torch.randint(1, 370, (400,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.fixture(scope="module")
def file(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scheduler") / "model.gguf"
    export_ragged(checkpoint_of("qwen3_moe"), made)
    return made


def opened(file: Path, parallel: int, context: int = 512, ubatch: int = 64) -> PerExpertModel:
    settings = {"context": context, "threads": 1, "kv_type": "F32", "ubatch": ubatch}
    return PerExpertModel(file, **settings, parallel=parallel)  # type: ignore[arg-type]


@pytest.fixture
def session(file: Path) -> Iterator[Session]:
    with opened(file, 3, context=1024) as made:
        yield made


def run_of(
    session: Session, prompt: Sequence[int], tokens: int = 8, sampling: SamplingOptions = GREEDY
) -> Run:
    return Run(Job(Work(tuple(prompt), sampling, tokens), lambda item: None), session)


def finished(scheduler: Scheduler, waiting: Sequence[Run] = ()) -> dict[Run, list[int]]:
    """The tokens of every run, admitted in turn as there is room."""
    line, answers = list(waiting), dict[Run, list[int]]()
    while line or scheduler.runs:
        while line and scheduler.admit(line[0]):
            line.pop(0)
        line = [*scheduler.make_room(), *line]
        for run, piece in scheduler.step():
            assert isinstance(piece, Piece), piece
            answers.setdefault(run, []).append(piece.token)
            if piece.finish is not None:
                scheduler.end(run)
    return answers


def alone(file: Path, prompt: Sequence[int], tokens: int = 8) -> list[int]:
    with opened(file, 1) as single:
        return [piece.token for piece in generate(single, prompt, GREEDY, tokens)]


def test_a_short_request_is_answered_while_a_long_prompt_is_read(session: Session) -> None:
    """Both share every step; whoever writes goes on, a token a step."""
    scheduler = Scheduler(session)
    writing, long, short = (
        run_of(session, TEXT[:5], 40),
        run_of(session, TEXT),
        run_of(session, [7]),
    )
    assert scheduler.admit(writing)
    scheduler.step()
    assert scheduler.admit(long) and scheduler.admit(short)
    steps: list[list[Run]] = []
    while long.generation.count == 0:
        steps.append([run for run, _ in scheduler.step()])
        for run in [run for run in scheduler.runs if run.generation.finished]:
            scheduler.end(run)
    assert short.generation.finished and len(steps) > 8
    assert all(writing in told for told in steps)
    assert all(short in told for told in steps[:8])


def test_answers_that_outgrow_the_cache_wait_and_go_on(file: Path) -> None:
    """Three of up to 130 tokens in 256 places: the last begun makes room, and loses nothing."""
    prompts = [TEXT[:10], TEXT[20:50], TEXT[100:105]]
    with opened(file, 3, context=256) as session:
        scheduler = Scheduler(session)
        runs = [run_of(session, prompt, 100) for prompt in prompts]
        answers = finished(scheduler, runs)
        assert [answers[run] for run in runs] == [alone(file, p, 100) for p in prompts]
        evaluated = scheduler.totals.prompt_tokens + scheduler.totals.cached_tokens
        assert evaluated == sum(map(len, prompts)) and scheduler.totals.generated_tokens == 300


def test_a_prompt_takes_the_slot_that_it_goes_on_from(session: Session) -> None:
    scheduler = Scheduler(session)

    def asked(prompt: Sequence[int]) -> tuple[int, int]:
        """(slot, tokens found in the cache)."""
        run = run_of(session, prompt, 2)
        assert scheduler.admit(run)
        (slot,) = [status.number for status in scheduler.status() if status.work]
        finished(scheduler)
        return slot, run.job.cached_tokens

    system = TEXT[:30]
    assert asked([*system, *TEXT[100:140]]) == (0, 0)
    # Less than half of what is there: another slot, with a copy of the beginning.
    assert asked([*system, *TEXT[200:240]]) == (1, 30)
    assert asked([*system, *TEXT[100:140], 5, 6]) == (0, 70)
    assert asked(TEXT[300:310]) == (2, 0)
    # None goes on from there: the one that was used longest ago.
    assert asked(TEXT[320:330]) == (1, 0)


def test_a_prefix_of_a_running_answer_is_shared(session: Session) -> None:
    scheduler = Scheduler(session)
    first, second = run_of(session, TEXT[:50], 20), run_of(session, [*TEXT[:40], 9], 20)
    assert scheduler.admit(first)
    scheduler.step()
    assert scheduler.admit(second) and second.job.cached_tokens == 40
    answers = finished(scheduler)
    assert len(answers[first]) == 19 and len(answers[second]) == 20


def test_slots_and_totals_are_told(session: Session) -> None:
    scheduler = Scheduler(session)
    run = run_of(session, TEXT[:10], 20)
    assert scheduler.admit(run)
    for _ in range(3):
        scheduler.step()
    first, *others = scheduler.status()
    assert (first.work, first.tokens) == (run.job.work, 12)
    assert (first.generated_tokens, first.left_tokens) == (3, 17)
    assert not any(slot.work or slot.tokens for slot in others)
    totals = scheduler.totals
    assert (totals.prompt_tokens, totals.generated_tokens, totals.steps) == (10, 3, 3)
    assert totals.parts == 3 and totals.prompt_seconds > 0 and totals.generation_seconds > 0


def test_one_answers_error_is_its_own(session: Session) -> None:
    """Logits that one asks to be impossible; what others read does not change."""
    inboxes = [queue.Queue[Piece | Exception]() for _ in range(3)]
    bad = SamplingOptions(temperature=-1.0)
    with closing(Worker(session, 3)) as worker:
        for number, inbox in enumerate(inboxes):
            worker.reserve()
            work = Work(tuple(TEXT[:6]), bad if number == 1 else GREEDY, 6)
            worker.submit(Job(work, inbox.put))
        error = inboxes[1].get(timeout=60)
        assert isinstance(error, RefusalError) and str(error).startswith("--temperature is -1.0")
        for inbox in (inboxes[0], inboxes[2]):
            pieces = [inbox.get(timeout=60) for _ in range(6)]
            assert isinstance(pieces[-1], Piece) and pieces[-1].finish == "length"
        assert worker.counts == (0, 0) and worker.status().totals.generated_tokens == 12

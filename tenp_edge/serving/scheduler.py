"""Continuous batching: what every running answer evaluates in the next step, and in which slot.

    step:  one token of every answer that is being written
         + a share of every prompt that is still being read, the shortest first
    -> logits -> a piece for every answer whose tokens are all in the cache

Slots keep their tokens after an answer. A new prompt takes the slot that it goes on from, or the
one that was used longest ago with a copy of what the prompt shares with any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tenp_edge.runtime.generation import Generation, Piece, most_tokens
from tenp_edge.runtime.sampling import Logprobs, SamplingOptions, logprobs
from tenp_edge.runtime.session import Logits, Session
from tenp_edge.runtime.slots import Part, Slot
from tenp_edge.serving.stops import Stops

# Tokens of longer prompts that are read in a step in which others get their next token, or soon get
# their first: these wait for them.
BESIDE_ANSWERS = 64
# Tokens of a prompt whose log probabilities are asked for: a row of the vocabulary's size for each.
_TOLD_AT_ONCE = 32


@dataclass(frozen=True)
class Work:
    """What to generate: checked, so that the model will not refuse it. ``told``: how many log
    probabilities are told beside that of each token of the prompt; None: nothing is."""

    prompt: tuple[int, ...]
    sampling: SamplingOptions
    max_tokens: int
    stops: tuple[str, ...] = ()
    told: int | None = None


@dataclass(frozen=True)
class Told:
    """The log probabilities of a prompt's tokens, from the second on."""

    values: tuple[Logprobs, ...]


Item = Piece | Told | Exception


class Job:
    """Work in the line. ``deliver`` is called from the worker's thread: what is `Told` of the
    prompt, if it is asked for, then a `Piece` per token, or the exception that ended it.
    ``cached_tokens``: of the prompt, found in the cache; ``slot``: its number."""

    def __init__(self, work: Work, deliver: Callable[[Item], None]) -> None:
        self.work, self.deliver = work, deliver
        self.cancelled = False
        self.cached_tokens = self.slot = 0


class Run:
    """An answer in the making: ``tokens`` of its prompt and of what it has of the answer."""

    def __init__(self, job: Job, session: Session) -> None:
        work = job.work
        limit = most_tokens(session.context, len(work.prompt), work.max_tokens)
        self.job, self.tokens = job, list(work.prompt)
        self.generation = Generation(session.vocabulary, work.prompt, work.sampling, limit)
        self._stops = Stops(work.stops)
        self.told: list[Logprobs] = []
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since it began, or since the last time."""
        before, self._last = self._last, time.monotonic()
        return self._last - before

    @property
    def tells(self) -> bool:
        """Whether log probabilities of the prompt are still to be told."""
        work = self.job.work
        return work.told is not None and len(self.told) < len(work.prompt) - 1

    def tell(self, rows: Logits, position: int) -> None:
        """Take ``rows`` of logits [n, vocab], those after ``position`` and on."""
        work = self.job.work
        assert work.told is not None
        following = work.prompt[position + 1 :]
        self.told += [
            logprobs(row, token, work.told) for row, token in zip(rows, following, strict=False)
        ]

    def take(self, logits: Logits) -> Piece:
        """The next piece, whose token is to be evaluated unless it is the last."""
        piece = self._stops.cut(self.generation.take(logits))
        if piece.finish is None:
            self.tokens.append(piece.token)
        return piece


@dataclass
class Totals:
    """Since the start: tokens of prompts that were evaluated, that were found in the cache, that
    were generated; seconds that answers took up to their first token, and after it; steps, and the
    runs that they evaluated."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    steps: int = 0
    parts: int = 0


@dataclass(frozen=True)
class SlotStatus:
    """A slot now: ``tokens`` in the cache; the ``work`` that it runs, if any, with the tokens that
    it has generated and may still generate."""

    number: int
    tokens: int
    work: Work | None = None
    generated_tokens: int = 0
    left_tokens: int = 0


class Scheduler:
    """The runs in a session's slots. Used by one thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._runs: dict[Slot, Run] = {}
        self._used = dict.fromkeys(session.slots, 0)  # by the time of the last use
        self._clock = 0
        self.totals = Totals()

    @property
    def runs(self) -> list[Run]:
        """In the order in which they were admitted."""
        return list(self._runs.values())

    def status(self) -> tuple[SlotStatus, ...]:
        return tuple(self._status(slot) for slot in self._session.slots)

    def _status(self, slot: Slot) -> SlotStatus:
        run = self._runs.get(slot)
        if run is None:
            return SlotStatus(slot.number, slot.position)
        count = run.generation.count
        left = run.generation.limit - count
        return SlotStatus(slot.number, slot.position, run.job.work, count, left)

    # -- slots ---------------------------------------------------------------------------------

    def admit(self, run: Run) -> bool:
        """Give ``run`` a slot; False where none is free or the cache has no room for its tokens."""
        free = [slot for slot in self._session.slots if slot not in self._runs]
        if not free:
            return False
        slot = self._chosen(free, run.tokens)
        if not self._has_room(slot, run):
            return False
        self._begin(slot, run)
        return True

    def _chosen(self, free: Sequence[Slot], tokens: Sequence[int]) -> Slot:
        """The slot that ``tokens`` go on from, unless most of what it holds would be lost; then the
        one that was used longest ago."""
        nearest = max(free, key=lambda slot: slot.shared(tokens))
        if 2 * nearest.shared(tokens) > nearest.position:
            return nearest
        return min(free, key=lambda slot: (slot.position > 0, self._used[slot]))

    def _has_room(self, slot: Slot, run: Run) -> bool:
        """Whether the cache holds ``run`` beside all others, when unused slots give theirs up."""
        sizes = self._sizes() | {slot: max(slot.position, len(run.tokens))}
        while not self._session.make_room(sizes):
            if not self._give_up(besides=slot):
                return False
        return True

    def _begin(self, slot: Slot, run: Run) -> None:
        session = self._session
        run.job.slot = slot.number
        if run.tells:
            run.told.clear()
            session.reset(0, slot)
            self._runs[slot] = run
            self._touch(slot)
            return
        source = max(session.slots, key=lambda other: other.shared(run.tokens))
        shared = source.shared(run.tokens)
        if shared > slot.shared(run.tokens):
            session.reset(0, slot)
            session.copy_prefix(source, slot, shared)
        kept = session.keep_shared(run.tokens, slot)
        if not run.generation.count:
            run.job.cached_tokens = kept
            self.totals.cached_tokens += kept
        self._runs[slot] = run
        self._touch(slot)

    def end(self, run: Run) -> None:
        """``run`` leaves its slot, which keeps the tokens."""
        for slot in [slot for slot, other in self._runs.items() if other is run]:
            del self._runs[slot]

    def fail(self, run: Run) -> None:
        """``run`` leaves its slot, whose tokens may not be what they seem."""
        for slot in [slot for slot, other in self._runs.items() if other is run]:
            del self._runs[slot]
            self._session.reset(0, slot)

    def _give_up(self, besides: Slot) -> bool:
        """Forget the unused slot that was used longest ago; False where none holds anything."""
        held = [
            slot
            for slot in self._session.slots
            if slot.position and slot is not besides and slot not in self._runs
        ]
        if held:
            self._session.reset(0, min(held, key=self._used.__getitem__))
        return bool(held)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        self._used[slot] = self._clock

    def _sizes(self) -> dict[Slot, int]:
        return {slot: len(run.tokens) for slot, run in self._runs.items()}

    # -- steps ---------------------------------------------------------------------------------

    def make_room(self) -> list[Run]:
        """Have room for the next step of every run: those that had to make room for the others,
        the last admitted first. They go on where they were, when there is room again."""
        left: list[Run] = []
        while not self._session.make_room(self._sizes()):
            last = next(reversed(self._runs))
            if not self._give_up(besides=last):
                assert len(self._runs) > 1, "the context does not hold a single run"
                left.append(self._runs.pop(last))
                self._session.reset(0, last)
        return left

    def step(self) -> list[tuple[Run, Item]]:
        """Evaluate one batch: a piece, or what went wrong with it, of every run whose tokens are
        all evaluated. Prompts that are told are evaluated alone, and take turns with the others."""
        telling = [slot for slot, run in self._runs.items() if run.tells]
        if telling and (len(telling) == len(self._runs) or self.totals.steps % 2):
            return self._tell(min(telling, key=self._used.__getitem__))
        parts = list(self._parts())
        rows = self._session.step(parts)
        self.totals.steps += 1
        self.totals.parts += len(parts)
        found: list[tuple[Run, Item]] = []
        for part, logits in zip(parts, rows, strict=True):
            run = self._runs[part.slot]
            self._touch(part.slot)
            first = not run.generation.count
            self.totals.prompt_tokens += len(part.tokens) if first else 0
            if part.slot.position == len(run.tokens):
                found.append((run, self._taken(run, logits)))
        return found

    def _tell(self, slot: Slot) -> list[tuple[Run, Item]]:
        """Evaluate some of a prompt with all of its logits."""
        run, begin = self._runs[slot], slot.position
        count = min(self._left(slot), _TOLD_AT_ONCE, self._session.at_once(slot))
        tokens = run.tokens[begin:][:count]
        rows = self._session.step([Part(slot, tokens)], all_logits=True)
        self.totals.steps += 1
        self.totals.parts += 1
        self.totals.prompt_tokens += count
        self._touch(slot)
        run.tell(rows, begin)
        if slot.position < len(run.tokens):
            return []
        return [(run, Told(tuple(run.told))), (run, self._taken(run, rows[-1]))]

    def _taken(self, run: Run, logits: Logits) -> Piece | Exception:
        """The next piece, counted. One answer's error is no reason to end the others."""
        first = not run.generation.count
        try:
            piece = run.take(logits)
        except Exception as error:
            return error
        self.totals.generated_tokens += 1
        if first:
            self.totals.prompt_seconds += run.lap()
        else:
            self.totals.generation_seconds += run.lap()
        return piece

    def _parts(self) -> Iterator[Part]:
        """What is evaluated next of every run that tells nothing of its prompt."""
        runs = [slot for slot, run in self._runs.items() if not run.tells]
        room = self._room()
        crowded = room < len(runs)
        waiting = sorted(
            runs, key=lambda slot: (0 if crowded else self._left(slot), self._used[slot])
        )
        for number, slot in enumerate(waiting):
            share = max(1, room // (len(waiting) - number))
            count = min(self._left(slot), share, self._session.at_once(slot))
            room -= count
            yield Part(slot, self._runs[slot].tokens[slot.position :][:count])
            if room <= 0:
                return

    def _room(self) -> int:
        """Tokens of the next step."""
        if len(self._runs) == 1:
            return self._session.batch_tokens
        left = [self._left(slot) for slot, run in self._runs.items() if not run.tells]
        soon = sum(count for count in left if count <= BESIDE_ANSWERS)
        most = self._session.shared_batch
        return min(most, soon + BESIDE_ANSWERS) if soon else most

    def _left(self, slot: Slot) -> int:
        return len(self._runs[slot].tokens) - slot.position

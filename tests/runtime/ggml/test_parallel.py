"""Several sequences in one session: each reads what it would read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import Logits, assert_close
from support.runtime_cases import CheckpointOf, export_ragged

from tenp_edge.errors import UserError
from tenp_edge.models import state_bytes
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.memory.footprint import STATE_SNAPSHOTS, cache_places
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.slots import Part, Slot

CONTEXT, UBATCH = 1024, 32
# Longer than the windows of the tiny models, and of lengths that are not whole chunks.
TEXTS = [
    torch.randint(1, 370, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (70, 45, 9)
]
# Grouped heads, latents, windows; a convolution, a selective state, a delta net.
SOME = ("qwen3_moe", "deepseek_v2", "gpt_oss", "lfm2_moe", "nemotron_h", "qwen3_next")
FileOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def file_of(
    checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FileOf]:
    made: dict[str, Path] = {}

    def file_of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model.gguf"
            export_ragged(checkpoint_of(family), made[family])
        return made[family]

    yield file_of


def opened(file: Path, parallel: int = 1, **choices: object) -> PerExpertModel:
    settings = {"context": CONTEXT, "threads": 1, "kv_type": "F32", "ubatch": UBATCH}
    return PerExpertModel(file, **settings | choices, parallel=parallel)  # type: ignore[arg-type]


def alone(session: Session, text: Sequence[int], chunks: Sequence[int]) -> list[Logits]:
    """Logits after every one of ``chunks``."""
    session.reset()
    found, start = [], 0
    for size in chunks:
        found.append(session.evaluate(text[start : start + size]))
        start += size
    return found


def chunks_of(text: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """``sizes``, then one token at a time to the end."""
    return [*sizes, *[1] * (len(text) - sum(sizes))]


# A long prompt in chunks beside two answers that go on, one of which begins later.
CHUNKS = [chunks_of(TEXTS[0], [8, 8, 8, 8, 8]), chunks_of(TEXTS[1], [16]), chunks_of(TEXTS[2], [])]
BEGINS = [2, 0, 5]


def together(session: Session) -> list[list[Logits]]:
    found: list[list[Logits]] = [[] for _ in TEXTS]
    for number in range(max(map(len, CHUNKS)) + max(BEGINS)):
        going = [
            index for index, begin in enumerate(BEGINS) if 0 <= number - begin < len(CHUNKS[index])
        ]
        if not going:
            break
        parts = [
            next_part(session.slots[i], TEXTS[i], CHUNKS[i][number - BEGINS[i]]) for i in going
        ]
        for index, row in zip(going, session.step(parts), strict=True):
            found[index].append(row.copy())
    return found


def next_part(slot: Slot, text: Sequence[int], size: int) -> Part:
    return Part(slot, text[slot.position : slot.position + size])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_reads_what_it_would_alone(family: str, file_of: FileOf) -> None:
    """Single tokens to the last bit; a chunk of a prompt rounds with those beside it."""
    with opened(file_of(family)) as single, opened(file_of(family), 3) as session:
        prompted, *answers = together(session)
        assert_close(np.stack(prompted), np.stack(alone(single, TEXTS[0], CHUNKS[0])), family)
        for text, chunks, rows in zip(TEXTS[1:], CHUNKS[1:], answers, strict=True):
            assert np.array_equal(rows, alone(single, text, chunks))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", SOME)
def test_quantised_answers_are_those_of_one_alone(
    kind: str, family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    export_ragged(checkpoint_of(family), tmp_path / "model.gguf", kind)
    settings = {"kv_type": "F16", "threads": 2}
    with (
        opened(tmp_path / "model.gguf", **settings) as single,
        opened(tmp_path / "model.gguf", 3, **settings) as session,
    ):
        _, *answers = together(session)
        for text, chunks, rows in zip(TEXTS[1:], CHUNKS[1:], answers, strict=True):
            assert np.array_equal(rows, alone(single, text, chunks))


@pytest.mark.parametrize("family", SOME)
def test_a_shared_cache_moves_its_sequences(family: str, file_of: FileOf) -> None:
    """All of 256 places: extents are laid out again and again, and nobody notices."""
    sizes = (96, 60, 90)
    text = torch.randint(1, 370, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    with opened(file_of(family)) as single, opened(file_of(family), 3, context=256) as session:
        wanted = alone(single, text, [1] * 96)
        starts = set()
        for number in range(96):
            going = [
                slot for slot, size in zip(session.slots, sizes, strict=True) if number >= 96 - size
            ]
            rows = session.step([next_part(slot, text, 1) for slot in going])
            for slot, row in zip(going, rows, strict=True):
                assert np.array_equal(row, wanted[slot.position - 1])
            starts.add(tuple(session._cache.extents[number].start for number in range(3)))
        assert len(starts) > 1
        assert not session.make_room({slot: slot.position + 8 for slot in session.slots})
        with pytest.raises(UserError) as caught:
            session.step([Part(session.slots[0], [1] * 8)] * 1)
        assert str(caught.value) == (
            "104 tokens do not fit into a context of 256\n"
            "try: a larger --context or a shorter prompt"
        )
        session.reset(0, session.slots[2])
        assert np.array_equal(session.evaluate([5], session.slots[0]), single.evaluate([5]))


@pytest.mark.parametrize("family", SOME)
def test_a_prefix_is_copied(family: str, file_of: FileOf) -> None:
    text = TEXTS[0]
    with opened(file_of(family)) as single, opened(file_of(family), 2) as session:
        source, target = session.slots
        session.keep_shared(text, source)
        session.evaluate(text, source)
        end = len(text) - 1  # where layers that carry a state have kept theirs
        assert session.copy_prefix(source, target, end) == end
        found = session.evaluate([9, 8], target)
        assert_close(found, single.evaluate([*text[:end], 9, 8]), family)
        assert_close(session.evaluate([3], source), alone(single, [*text, 3], [70, 1])[1], family)
        session.reset(0, target)
        kept = session.copy_prefix(source, target, 20)
        assert kept == (0 if family in tiny.STATE_FAMILIES else 20)


@pytest.mark.parametrize("family", SOME)
def test_what_more_sequences_take_is_known(family: str, file_of: FileOf) -> None:
    """Rings and states of their own, and no other byte of cache; the buffers never grow."""
    sizes = {"kv_type": "F16", "context": 512}
    with opened(file_of(family), 1, **sizes) as one, opened(file_of(family), 4, **sizes) as four:
        single, memory, facts = one.memory(), four.memory(), one.facts
        assert memory.weights_bytes == single.weights_bytes
        own = state_bytes(facts.mixers) * (1 + STATE_SNAPSHOTS)
        rings = sum(
            2 * sum(attention.cache_rows) * cache_places(512, attention.window, UBATCH)
            for attention in facts.attention.values()
            if attention.window is not None
        )
        assert memory.kv_bytes == single.kv_bytes + 3 * (own + rings)
        for counts in ([32], [21, 1, 1, 1], [6, 6, 6, 6], [1, 1, 1, 1], [10, 14], [12, 11, 1]):
            for slot in four.slots:
                four.reset(0, slot)
            pairs = zip(four.slots, counts, strict=False)
            four.step([Part(slot, [5] * count) for slot, count in pairs])
            assert four._allocator.nbytes <= memory.compute_bytes

"""Layers that carry a state: any division of a text into chunks, going back, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import Logits, assert_close
from support.runtime_cases import export_ragged

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.models import state_bytes
from tenp_edge.planning.memory.table import kv_bytes
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.memory.footprint import STATE_SNAPSHOTS, MemoryRun
from tenp_edge.runtime.memory.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.slots import Part

CONTEXT = 1024
TOKENS = torch.randint(1, 370, (530,), generator=torch.Generator().manual_seed(5)).tolist()
SESSIONS = {"per-expert": PerExpertModel, "padded": LlamaCppModel}
DirectoryOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> DirectoryOf:
    """Of a family the pruned checkpoint, its file of either runtime, and the logits of TOKENS in
    transformers."""

    @cache
    def make(family: str) -> Path:
        made = tmp_path_factory.mktemp(family)
        tiny.make(made / "model", family, max_position_embeddings=CONTEXT)
        for layout in SESSIONS:
            plan = export_ragged(made / "model", made / f"{layout}.gguf", "F32", layout)
        write_checkpoint(ModelSource(Checkpoint(made / "model"), plan), made / "pruned")
        with torch.no_grad():
            wanted = load_pruned(made / "pruned")(torch.tensor([TOKENS])).logits[0].numpy()
        np.save(made / "logits.npy", wanted)
        return made

    return make


def logits_of(directory: Path) -> Logits:
    found: Logits = np.load(directory / "logits.npy")
    return found


def opened(directory: Path, layout: str, ubatch: int = 64) -> Session:
    settings = {"context": CONTEXT, "threads": 1, "kv_type": "F32", "ubatch": ubatch}
    return SESSIONS[layout](directory / f"{layout}.gguf", **settings)


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_chunks_of_any_size_are_what_transformers_computes(
    chunk: int, family: str, layout: str, directory_of: DirectoryOf
) -> None:
    directory = directory_of(family)
    with opened(directory, layout, chunk) as model:
        assert_close(model.logits(TOKENS), logits_of(directory))


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_going_back_is_going_on_from_there(
    family: str, layout: str, directory_of: DirectoryOf
) -> None:
    with (
        opened(directory_of(family), layout) as model,
        opened(directory_of(family), layout) as fresh,
    ):
        model.prompt(TOKENS[:300])
        for shared in (299, 200, 200, 20, 1, 0):
            for ending in ([7, 8, 9], [7, 8, 9], [10] * 70):
                text = [*TOKENS[:shared], *ending]
                fresh.reset()
                assert_close(model.prompt(text), fresh.evaluate(text))
                assert model.position == len(text)
        model.reset(15)
        fresh.reset()
        assert_close(model.decode(5), fresh.evaluate([*([10] * 15), 5]))


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
@pytest.mark.parametrize("before", [0, 50])
def test_an_interrupted_step_leaves_no_trace(
    before: int,
    family: str,
    layout: str,
    directory_of: DirectoryOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C is heard when the library returns: the state has gone on, the sequence has not."""
    with (
        opened(directory_of(family), layout) as model,
        opened(directory_of(family), layout) as fresh,
    ):
        if before:
            model.prompt(TOKENS[:before])
        run = model._run

        def interrupted(parts: Sequence[Part], all_logits: bool) -> Logits:
            run(parts, all_logits)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(model, "_run", interrupted)
            model.evaluate([3, 4, 5])
        text = [*TOKENS[:before], 7, 8, 9]
        assert_close(model.prompt(text), fresh.evaluate(text))


@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_an_interrupted_reset_leaves_no_trace(
    family: str, directory_of: DirectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state has gone back, the tokens have not: what goes on from them is evaluated again."""
    with (
        opened(directory_of(family), "per-expert") as model,
        opened(directory_of(family), "per-expert") as fresh,
    ):
        assert isinstance(model, PerExpertModel)
        model.prompt(TOKENS[:50])
        go_back = model._states[0].return_to

        def interrupted(keep: int, position: int | None) -> None:
            go_back(keep, position)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(model._states[0], "return_to", interrupted)
            model.reset(20)
        text = [*TOKENS[:50], 7, 8, 9]
        assert_close(model.prompt(text), fresh.evaluate(text))


@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_what_is_kept_is_known(family: str, directory_of: DirectoryOf) -> None:
    """Two states: where the last prompt left the one before it, and before its last token."""
    with opened(directory_of(family), "per-expert") as model:
        model.prompt(TOKENS[:100])
        model.evaluate([1, 2, 3])
        assert model.keep_shared([*TOKENS[:100], 1, 2, 3, 4]) == 103  # It goes on.
        assert model.keep_shared([*TOKENS[:100], 1, 5]) == 99  # Another answer to the same.
        model.prompt([*TOKENS[:70], 5, 6])
        assert model.keep_shared([*TOKENS[:70], 7, 8]) == 70  # What two prompts begin with.
        model.prompt([*TOKENS[:70], 7, 8])
        assert model.keep_shared([*TOKENS[:60], 7, 8]) == 0


@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_llama_cpp_can_only_go_on_or_begin(family: str, directory_of: DirectoryOf) -> None:
    with opened(directory_of(family), "padded") as model:
        model.prompt(TOKENS[:100])
        assert model.keep_shared([*TOKENS[:100], 1]) == 100
        assert model.keep_shared(TOKENS[:100]) == 0


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_the_predicted_cache_is_the_runtimes(
    family: str, layout: str, directory_of: DirectoryOf
) -> None:
    run, directory = MemoryRun(512, 64, "F16", 1), directory_of(family)
    config = Checkpoint(directory / "model").config
    wanted, state = kv_bytes(config, run), state_bytes(config.mixers)
    found = predict_peak(directory / f"{layout}.gguf", run).kv_bytes
    assert state > 0
    if layout == "per-expert":
        assert found == wanted
    else:  # llama.cpp has one state, and says what it takes in hundredths of a MiB
        assert abs(found - (wanted - STATE_SNAPSHOTS * state)) < 2**14


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("family", tiny.STATE_FAMILIES)
def test_the_peak_is_not_above_the_prediction(
    family: str, layout: str, directory_of: DirectoryOf
) -> None:
    run, file = MemoryRun(CONTEXT, 64, "F16", 1), directory_of(family) / f"{layout}.gguf"
    measured = measure_peak_rss(file, **asdict(run), prompt_tokens=CONTEXT)
    # Most of either is the process, as large as the machine's libraries make it; and what a kernel
    # reclaims of them in between, neither sees.
    assert measured <= predict_peak(file, run).total_bytes <= 1.1 * measured + 4 * 2**20

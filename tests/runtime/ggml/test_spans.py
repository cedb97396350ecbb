"""Layers of a window keep a ring: what it holds is what the whole context would show them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.gguf_cases import assert_close
from support.runtime_cases import export_ragged

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.planning.memory.table import kv_bytes
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.memory.footprint import MemoryRun, cache_places
from tenp_edge.runtime.memory.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.session import Session

CONTEXT, UBATCH = 1024, 64
# Through a ring of 256 places two and a half times.
TOKENS = torch.randint(1, 370, (640,), generator=torch.Generator().manual_seed(5)).tolist()
SESSIONS = {"per-expert": PerExpertModel, "padded": LlamaCppModel}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned checkpoint, and its file of either runtime."""
    made = tmp_path_factory.mktemp("windows")
    tiny.make(made / "model", "gpt_oss", max_position_embeddings=CONTEXT)
    for layout in SESSIONS:
        plan = export_ragged(made / "model", made / f"{layout}.gguf", "F32", layout)
    write_checkpoint(ModelSource(Checkpoint(made / "model"), plan), made / "pruned")
    return made


def opened(directory: Path, layout: str) -> Session:
    settings = {"context": CONTEXT, "threads": 1, "kv_type": "F32", "ubatch": UBATCH}
    return SESSIONS[layout](directory / f"{layout}.gguf", **settings)


@pytest.mark.parametrize("layout", SESSIONS)
def test_a_long_text_is_what_transformers_computes(directory: Path, layout: str) -> None:
    with torch.no_grad():
        wanted = load_pruned(directory / "pruned")(torch.tensor([TOKENS])).logits[0].numpy()
    with opened(directory, layout) as model:
        assert_close(model.logits(TOKENS), wanted)
        model.reset()
        model.evaluate(TOKENS[:600])
        single = np.stack([model.decode(token) for token in TOKENS[600:]])
        assert_close(single, wanted[600:])


@pytest.mark.parametrize("layout", SESSIONS)
@pytest.mark.parametrize("shared", [20, 200, 395, 399, 400, 580, 639])
def test_going_back_is_going_on_from_there(directory: Path, layout: str, shared: int) -> None:
    """Where the ring has lost what a shorter prefix saw, the prompt is computed from its start."""
    other = [*TOKENS[:shared], 7, 8, 9]
    with opened(directory, layout) as model:
        model.evaluate(TOKENS)
        found = model.prompt(other)
        assert model.position == len(other)
        again = model.prompt([*other[:-1], 10])
        model.reset()
        assert_close(found, model.evaluate(other))
        model.reset()
        assert_close(again, model.evaluate([*other[:-1], 10]))


def test_how_far_back_is_known(directory: Path) -> None:
    """640 tokens in 256 places of a window of 16: the token behind 399 sees position 384, the
    oldest that is left; a second return does not forget what the first left overwritten."""
    with opened(directory, "per-expert") as model:
        model.evaluate(TOKENS)
        assert model.keep_shared([*TOKENS[:399], 5]) == 399
        model.evaluate([5])
        assert model.keep_shared([*TOKENS[:398], 5]) == 0
        model.evaluate(TOKENS[:200])
        assert model.keep_shared([*TOKENS[:10], 5]) == 10


@pytest.mark.parametrize(("context", "ubatch"), [(64, 512), (512, 64), (1024, 64), (1000, 300)])
@pytest.mark.parametrize("layout", SESSIONS)
def test_the_predicted_cache_is_the_runtimes(
    directory: Path, layout: str, context: int, ubatch: int
) -> None:
    run = MemoryRun(context, ubatch, "F16", 1)
    config = Checkpoint(directory / "model").config
    wanted = kv_bytes(config, run)
    assert abs(predict_peak(directory / f"{layout}.gguf", run).kv_bytes - wanted) < 2**14
    full, ring = cache_places(context, None, ubatch), cache_places(context, 16, ubatch)
    row = 2 * 2 * 32 * 2  # keys and values of two heads of 32, F16
    assert wanted == row * (full + 2 * ring)


@pytest.mark.parametrize("layout", SESSIONS)
def test_the_peak_is_not_above_the_prediction(directory: Path, layout: str) -> None:
    run, file = MemoryRun(CONTEXT, UBATCH, "F16", 1), directory / f"{layout}.gguf"
    measured = measure_peak_rss(file, **asdict(run), prompt_tokens=CONTEXT)
    # Most of either is the process, as large as the machine's libraries make it.
    assert measured <= predict_peak(file, run).total_bytes <= 1.1 * measured

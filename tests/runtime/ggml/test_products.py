"""Several sequences of quantised weights: each gets what it would get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.gguf_cases import TOKENS, export
from support.runtime_cases import build_extension

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.slots import Part


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model all of whose rows are whole blocks of Q4_K."""
    made = tmp_path_factory.mktemp("products")
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 4}
    tiny.make(made / "model", "qwen3_moe", **sizes)
    source = ModelSource(Checkpoint(made / "model"))
    export(source, made / "model.gguf", "Q4_K_S", "per-expert")
    return made / "model.gguf"


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_sequences_reads_what_each_would_alone(
    threads: int, file: Path, tmp_path: Path
) -> None:
    """Two to twenty columns, with eight at a time through the kernel and what is left over."""
    if not build_extension(tmp_path):
        return  # Where there is no compiler, there is no kernel.
    settings = {"context": 1024, "threads": threads, "ubatch": 64}
    with (
        PerExpertModel(file, **settings) as single,  # type: ignore[arg-type]
        PerExpertModel(file, **settings, parallel=20) as session,  # type: ignore[arg-type]
    ):
        alone = []
        for token in TOKENS[:20]:
            single.reset()
            alone.append(single.evaluate([token]))
        for count in (2, 3, 8, 9, 20):
            for slot in session.slots:
                session.reset(0, slot)
            pairs = zip(session.slots[:count], TOKENS, strict=False)
            found = session.step([Part(slot, [token]) for slot, token in pairs])
            assert np.array_equal(found, alone[:count])

"""Files with layers that carry a state: which they are, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.edits import refusal
from support.runtime_cases import CheckpointOf, changed, header_of

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.gguf.model_metadata import Facts, read_facts


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> Header:
    return header_of(checkpoint_of("lfm2_moe"), tmp_path_factory.mktemp("sound") / "model.gguf")


def facts(sound: Header, **changes: Any) -> Facts:
    return read_facts(changed(sound, **changes))


def test_every_layer_is_the_checkpoints(sound: Header, checkpoint_of: CheckpointOf) -> None:
    config = Checkpoint(Path(checkpoint_of("lfm2_moe"))).config
    found = facts(sound)
    assert found.mixers == config.mixers and found.mlp_layers == config.mlp_layers == {0}
    assert found.attention == config.attention_by_layer


HEADS = "its attention heads contradict each other"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention__head_count_kv": np.array([0, 2, 3], np.uint32)}, HEADS),
        ({"attention__head_count_kv": np.array([0, 1, 2], np.uint32)}, HEADS),
        ({"attention__head_count_kv": np.array([0, 2], np.uint32)}, HEADS),
        ({"attention__head_count_kv": np.array([0, 0, 0], np.uint32)}, HEADS),
        ({"attention__head_count_kv": np.array([], np.uint32)}, HEADS),
        ({"attention__head_count_kv": 2}, "attention.head_count_kv is not a list of numbers"),
        ({"shortconv__l_cache": 1}, "shortconv.l_cache is 1"),
        ({"shortconv__l_cache": 2**20}, "shortconv.l_cache is 1048576"),
        ({"shortconv__l_cache": None}, "shortconv.l_cache is None, not a size"),
    ],
)
def test_what_cannot_be(sound: Header, changes: dict[str, Any], why: str) -> None:
    wanted = (f"model.gguf cannot be run: {why}", "export it again")
    assert refusal(lambda: facts(sound, **changes)) == wanted

"""Files whose layers are of two kinds: what the metadata says of each, and what it cannot say."""

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
    return header_of(checkpoint_of("gemma4_text"), tmp_path_factory.mktemp("sound") / "model.gguf")


def facts(sound: Header, **changes: Any) -> Facts:
    return read_facts(changed(sound, **changes))


def test_every_layer_is_the_checkpoints(sound: Header, checkpoint_of: CheckpointOf) -> None:
    config, found = Checkpoint(Path(checkpoint_of("gemma4_text"))).config, facts(sound)
    assert found.mixers == config.mixers
    for own, rope, wanted in zip(
        found.attention.values(), found.layer_ropes, config.layer_ropes, strict=True
    ):
        assert (rope.dimensions, rope.base) == (own.head_dim, wanted.theta)
    assert (found.softcap, found.attention_scale, found.feed_forward) == (30.0, 1.0, 128)
    assert facts(sound, final_logit_softcapping=None).softcap == 0.0


HEADS = "its attention heads contradict each other"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention__shared_kv_layers": 1}, "attention.shared_kv_layers is not 0"),
        ({"block_count": 2**24}, "its routed layers are not 0..16777215"),
        ({"embedding_length_per_layer_input": 4}, "embedding_length_per_layer_input is not 0"),
        ({"attention__value_length_swa": 8}, HEADS),
        ({"rope__dimension_count_swa": 8}, HEADS),
        ({"attention__head_count_kv": np.array([2, 1, 3], np.uint32)}, HEADS),
        ({"attention__head_count_kv": np.array([2, 1, 0], np.uint32)}, HEADS),
        ({"attention__head_count_kv": 2}, "attention.head_count_kv is not a list of numbers"),
        (
            {"attention__sliding_window_pattern": np.array([True, False])},
            "2 windows and 3 KV heads, 3 layers",
        ),
        (
            {"attention__sliding_window_pattern": np.array([1, 0, 0], np.uint32)},
            "attention.sliding_window_pattern is not a list of true and false",
        ),
        ({"attention__sliding_window": None}, "attention.sliding_window is None, not a size"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0, not a number"),
    ],
)
def test_what_cannot_be(sound: Header, changes: dict[str, Any], why: str) -> None:
    wanted = (f"model.gguf cannot be run: {why}", "export it again")
    assert refusal(lambda: facts(sound, **changes)) == wanted

"""Files with gated delta nets: what the metadata says of them, and what it cannot say."""

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
from tenp_edge.runtime.gguf.tensor_checks import check_tensors

NAME = "tenp-qwen3next"
HEADS = "its heads of state contradict each other"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> Header:
    return header_of(checkpoint_of("qwen3_next"), tmp_path_factory.mktemp("sound") / "model.gguf")


def facts(sound: Header, **changes: Any) -> Facts:
    return read_facts(changed(sound, **changes))


def test_every_layer_is_the_checkpoints(sound: Header, checkpoint_of: CheckpointOf) -> None:
    config = Checkpoint(Path(checkpoint_of("qwen3_next"))).config
    assert facts(sound).mixers == config.mixers
    assert facts(sound, full_attention_interval=None).mixers == config.mixers
    assert sound.fields[f"{NAME}.full_attention_interval"] == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ssm__group_count": 3}, HEADS),
        ({"ssm__inner_size": 32}, HEADS),
        ({"ssm__conv_kernel": 1}, "ssm.conv_kernel is 1"),
        ({"ssm__conv_kernel": 65}, "ssm.conv_kernel is 65"),
        ({"ssm__state_size": None}, "ssm.state_size is None, not a size"),
        (
            {"attention__recurrent_layers": np.array([True, False])},
            "2 recurrent layers of 3",
        ),
        (
            {"attention__recurrent_layers": np.array([True, True, True])},
            "none of its layers attends",
        ),
        (
            {"attention__recurrent_layers": None},
            "attention.recurrent_layers is not a list of true and false",
        ),
    ],
)
def test_what_cannot_be(sound: Header, changes: dict[str, Any], why: str) -> None:
    wanted = (f"model.gguf cannot be run: {why}", "export it again")
    assert refusal(lambda: facts(sound, **changes)) == wanted


def test_tensors_of_another_kind_of_layer(sound: Header) -> None:
    header = changed(sound, attention__recurrent_layers=np.array([True, True, False]))
    found = refusal(lambda: check_tensors(header, read_facts(header)))
    assert found[0] == "model.gguf contradicts itself: blk.1.attn_qkv.weight is missing"

"""Files of Mamba2 layers: what the metadata says of each layer, and what it cannot say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.edits import refusal
from support.runtime_cases import CheckpointOf, changed, header_of

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.models.multipliers import UNSCALED
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.gguf.model_metadata import Facts, read_facts

FAMILIES = ("nemotron_h", "granitemoehybrid")
FactsOf = Callable[..., Facts]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: CheckpointOf) -> FactsOf:
    """Of a family's file, with fields replaced (dots written as __) or removed (None)."""
    headers: dict[str, Header] = {}
    for family in FAMILIES:
        file = tmp_path_factory.mktemp(family) / "model.gguf"
        headers[family] = header_of(checkpoint_of(family), file)

    def read(family: str, **changes: Any) -> Facts:
        return read_facts(changed(headers[family], **changes))

    return read


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_the_checkpoints(
    family: str, facts: FactsOf, checkpoint_of: CheckpointOf
) -> None:
    config, found = Checkpoint(Path(checkpoint_of(family))).config, facts(family)
    assert found.mixers == config.mixers and found.mlp_layers == config.mlp_layers
    assert tuple(found.widths) == config.moe_layers and found.feed_forward == 0
    own = config.multipliers
    assert found.multipliers.attention == own.attention
    for name in ("embedding", "residual", "logits"):
        assert getattr(found.multipliers, name) == pytest.approx(getattr(own, name))
    assert found.attention_scale == pytest.approx(own.attention or 32**-0.5)


def test_a_file_without_multipliers_is_not_scaled(facts: FactsOf) -> None:
    keys = ("attention__scale", "embedding_scale", "residual_scale", "logit_scale")
    found = facts("granitemoehybrid", **dict.fromkeys(keys))
    assert found.multipliers == UNSCALED and found.attention_scale == 16**-0.5


SIZES = "the sizes of its states contradict each other"
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("nemotron_h", {"ssm__inner_size": 100}, SIZES),
    ("nemotron_h", {"ssm__group_count": 3}, SIZES),
    ("nemotron_h", {"ssm__conv_kernel": 1}, SIZES),
    ("nemotron_h", {"ssm__state_size": None}, "ssm.state_size is None, not a size"),
    (
        "nemotron_h",
        {"feed_forward_length": np.array([0, 96], np.uint32)},
        "feed_forward_length has 2 layers of 5",
    ),
    (
        "nemotron_h",
        {"feed_forward_length": np.array([0, 96, 0, 96, 0], np.uint32)},
        "its routed layers are not 1..4",
    ),
    (
        "nemotron_h",
        {"attention__head_count_kv": np.array([0, 2, 2, 0, 0], np.uint32)},
        "layer 1 both attends and routes",
    ),
    (
        "nemotron_h",
        {"attention__head_count_kv": np.zeros(5, np.uint32)},
        "its attention heads contradict each other",
    ),
    (
        "nemotron_h",
        {"rope__scaling__finetuned": True},
        "its attention rotates, which is not known of this architecture",
    ),
    (
        "granitemoehybrid",
        {"ssm__inner_size": 256},
        "ssm.inner_size is not 2 times the hidden size",
    ),
    ("granitemoehybrid", {"residual_scale": -1.0}, "residual_scale is -1.0, not a number"),
]


@pytest.mark.parametrize(("family", "changes", "why"), BROKEN, ids=lambda value: str(value)[:40])
def test_what_cannot_be(facts: FactsOf, family: str, changes: dict[str, Any], why: str) -> None:
    wanted = (f"model.gguf cannot be run: {why}", "export it again")
    assert refusal(lambda: facts(family, **changes)) == wanted

"""The published configs are what they say: their parameters are those of the models' cards."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from fit_table import SAME
from published_configs import PUBLISHED

from tenp_edge.models import FAMILIES, expected_tensors, read_config


@pytest.mark.parametrize(("stated", "raw"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_are_those_of_the_card(stated: float, raw: dict[str, Any]) -> None:
    config = read_config(raw, FAMILIES)
    parameters = sum(prod(spec.shape) for spec in expected_tensors(config))
    assert parameters / 1e9 == pytest.approx(stated, rel=SAME)


def test_every_family_is_there() -> None:
    assert {raw["model_type"] for _, raw in PUBLISHED.values()} == set(FAMILIES)

"""Models that no graph is built for are refused with the reason, in one line."""

from __future__ import annotations

import pytest
from support import tiny

from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.models import FAMILIES, read_config

WITHOUT = sorted(set(tiny.FAMILIES) - set(tiny.ONNX_FAMILIES))


@pytest.mark.parametrize("family", WITHOUT)
def test_layers_without_a_graph_are_refused(family: str) -> None:
    with pytest.raises(UserError) as caught:
        EXPORTER.check(read_config(tiny.CONFIGS[family], FAMILIES), ExportOptions("none"))
    assert str(caught.value) == (
        f"ONNX cannot hold {family}: there is no graph for its layers of the kind Mamba2\n"
        "try: --format gguf"
    )


def test_those_without_a_graph_are_the_ones_of_mamba() -> None:
    assert WITHOUT == ["granitemoehybrid", "nemotron_h"]

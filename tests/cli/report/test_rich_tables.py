"""Tables on wide and on narrow screens."""

from __future__ import annotations

import pytest

from tenp_edge.cli.output.screen import draw
from tenp_edge.cli.report.rich_tables import facts, table

ROWS = [("laptop-8gb", "8.00 GiB", "tenp-edge", "Q8_0"), ("phone", "12.00 GiB", "llama.cpp", "")]
COLUMNS = ("profile", "memory", "runtime", "type")


@pytest.mark.parametrize("width", [80, 60])
def test_a_table_is_as_wide_as_its_cells(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    draw(table("Profiles", COLUMNS, ROWS))
    assert (
        capsys.readouterr().out
        == """\
Profiles

  profile         memory     runtime   type
 ───────────────────────────────────────────
  laptop-8gb    8.00 GiB   tenp-edge   Q8_0
  phone        12.00 GiB   llama.cpp
"""
    )


def test_a_narrow_screen_folds_every_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    draw(table("Profiles", COLUMNS, ROWS), facts("", [("name", "value " * 9)]))
    assert (
        capsys.readouterr().out
        == """\
Profiles
laptop-8gb
    memory: 8.00 GiB; runtime:
    tenp-edge; type: Q8_0
phone
    memory: 12.00 GiB; runtime:
    llama.cpp

name
    value value value value value value
    value value value
"""
    )

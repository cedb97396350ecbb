"""A screen of labelled lines at several widths."""

from __future__ import annotations

from tenp_edge.cli.report.entries import Entries

SAID = Entries(
    [("memory", "fits into 8.00 GiB: 7.90 GiB predicted, context 4096"), ("", "and more")],
    [("talk to it", "tenp-edge run OUT --chat --context 4096"), ("serve it", "tenp-edge serve")],
)


def test_labels_stand_in_a_column() -> None:
    assert (
        str(SAID)
        == """\
memory    fits into 8.00 GiB: 7.90 GiB predicted, context 4096
          and more
next      talk to it:  tenp-edge run OUT --chat --context 4096
          serve it:    tenp-edge serve"""
    )


def test_a_narrow_screen_folds_text_and_leaves_commands_whole() -> None:
    assert (
        SAID.text(40)
        == """\
memory    fits into 8.00 GiB: 7.90 GiB
          predicted, context 4096
          and more
next      talk to it:
  tenp-edge run OUT --chat --context 4096
          serve it:
  tenp-edge serve"""
    )

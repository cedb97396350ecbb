"""Notes of one kind are one line."""

from __future__ import annotations

from tenp_edge.cli.report.plain_notes import merged, of_interest

NOTES = [
    "64 tensors (expert_down, rows of 128 to 192) take Q5_1: Q5_K needs a multiple of 256",
    "2 tensors (v, rows of 128) take Q8_0: Q6_K needs a multiple of 256",
    "planned for a context of 512: the model knows no more",
]


def test_replaced_types_are_one_line() -> None:
    assert merged(NOTES) == [
        "66 tensors take Q5_1 and Q8_0: Q5_K and Q6_K need rows of a multiple of 256",
        NOTES[2],
    ]
    assert merged(NOTES[1:]) == NOTES[1:]


def test_what_concerns_single_tensors_is_left_out() -> None:
    assert of_interest([*NOTES, NOTES[2]]) == NOTES[2:]
    assert of_interest(NOTES[1:]) == NOTES[2:]

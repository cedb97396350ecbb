"""The estimate of a whole run."""

from __future__ import annotations

import pytest

from tenp_edge.cli.output.course import RunCourse


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_stages_took_corrects_what_is_expected_of_the_later_ones() -> None:
    clock = Clock()
    course = RunCourse(clock)
    clock.now = 5  # imports
    course.expect({"calibration": 10, "plan": 2, "export": 20})
    course.begin("calibration")
    clock.now += 5
    assert course.left(0.5, 5) == 5 + 22  # as expected: half of it, and all later stages
    clock.now += 15
    course.begin("plan")  # it took twice as long as it was expected to
    assert course.left(0, 0) == pytest.approx(2 * 22)
    assert course.share(44) == pytest.approx(20 / 64)
    assert course.share(400) == pytest.approx(20 / 64)  # never back


def test_a_stage_that_is_reused_takes_no_time() -> None:
    clock = Clock()
    course = RunCourse(clock)
    course.expect({"calibration": 10, "plan": 2, "export": 20})
    course.begin("calibration")
    course.leave_out("calibration")
    course.begin("export")  # the plan was not even looked at
    assert course.left(0, 0) == 20


def test_a_verb_within_another_says_nothing_of_the_whole() -> None:
    clock = Clock()
    course = RunCourse(clock)
    course.expect({"calibration, seed 0": 10, "keep 0.6": 30})
    course.begin("calibration, seed 0")
    course.expect({"calibration": 1})
    course.begin("calibration")
    clock.now = 5
    assert course.left(0.5, 5) == 5 + 30


def test_a_task_that_is_slower_than_its_stage_was_expected_to_be() -> None:
    clock = Clock()
    course = RunCourse(clock)
    course.expect({"export": 10})
    course.begin("export")
    clock.now = 30
    assert course.left(0.5, 30) == 30

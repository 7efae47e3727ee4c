"""Where one generation ends and the next begins, when nobody says so."""

from __future__ import annotations

import pytest

from accel.attention.call import Progress
from accel.models.denoising import Denoising

FIRST, SECOND = object(), object()  # the schedules of two generations


@pytest.mark.parametrize(
    ("step", "schedule", "same"),
    [(6, FIRST, True), (7, FIRST, True), (3, FIRST, False), (0, SECOND, False), (7, SECOND, False)],
)
def test_a_generation_goes_on_at_later_steps_of_its_own_schedule(step: int, schedule: object, same: bool) -> None:
    """A picture is made from another one from a later step on: after an interruption it looks like the same loop."""
    denoising = Denoising()
    denoising.begin_call(None, Progress(6, 50, "cond"), FIRST)
    first = denoising.current
    denoising.begin_call(None, Progress(step, 50, "uncond"), schedule)
    assert (denoising.current is first) == same


def test_steps_that_the_loop_counts_need_no_schedule() -> None:
    """It may be that of another pipeline with the same transformer, which starts meanwhile."""
    denoising = Denoising()
    denoising.begin_call(None, Progress(6, 50, "cond"), FIRST, repeats=True)
    first = denoising.current
    denoising.begin_call(None, Progress(7, 50, "cond"), SECOND, repeats=True)
    assert denoising.current is first
    denoising.begin_call(None, Progress(7, 50, "cond"), SECOND, repeats=True)
    assert denoising.current is not first

"""Where one generation ends and the next begins, when nobody says so."""

from __future__ import annotations

import pytest

from accel.attention.call import Progress
from accel.models.denoising import Denoising

FIRST, SECOND = object(), object()  # the schedules of two generations


@pytest.mark.parametrize(
    ("step", "schedule", "begins", "same"),
    [
        (6, FIRST, False, True),
        (7, FIRST, False, True),
        (3, FIRST, False, False),
        (0, SECOND, True, False),
        (7, SECOND, True, False),  # a picture made from another one, after an interruption: looks like the same loop
        (7, SECOND, False, True),  # another pipeline with the same transformer has set its timesteps
        (6, SECOND, False, True),
    ],
)
def test_where_a_generation_goes_on(step: int, schedule: object, begins: bool, same: bool) -> None:
    denoising = Denoising()
    denoising.begin_call(None, Progress(6, 50, "cond"), FIRST)
    first = denoising.current
    denoising.begin_call(None, Progress(step, 50, "uncond"), schedule, begins=begins)
    assert (denoising.current is first) == same

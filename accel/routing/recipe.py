"""How routers learn: what they are asked for, and when at which rate."""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import InputError
from accel.routing.router import RESTS, VARIANTS


@dataclass(frozen=True)
class Recipe:
    """How routers learn.

    Blocks run at `rate` at timestep 0 and at `low_rate` (None: the same) at 1000, MLPs are as wide as `width_rate`
    (None: whole) where blocks run; `weight` is that of both beside the error (published 1; rates 0.6 and 0.5). The
    transformer learns with them if its `backbone_rate` is above 0, after so many steps in which the routers learn
    `alone` which blocks cannot be missed; weights with one of the words `frozen` in their names stay as they are, and
    are not saved. `distillation` is the share of the transformer as it was before in the velocity that is wanted; the
    remainder is the video's own, as published. Whole blocks' answers teach faster than videos, which noise hides. Noise
    levels are logit-normal, moved up by `shift`. With `rest` "skip" a block whose gate is off adds nothing, as
    published. With "reuse" one router says how often all blocks run, `rate` of the time, and learns where what they
    added at an earlier, noisier step is furthest from what they would add. All random numbers of a step come from
    `seed` and its number.
    """

    rate: float = 0.6
    low_rate: float | None = None
    width_rate: float | None = None
    weight: float = 1.0
    learning_rate: float = 1e-3
    backbone_rate: float = 0.0
    alone: int = 50
    frozen: tuple[str, ...] = ()
    distillation: float = 0.0
    shift: float = 3.0
    variant: str = "shared"
    rest: str = "skip"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "low_rate", "width_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value:g}; give a share above 0, and at most 1")
        for name in ("learning_rate", "backbone_rate", "weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name):g}; it must be 0 or more, and finite")
        if not 0 <= self.distillation <= 1:
            raise InputError(f"distillation is {self.distillation:g}; give a share between 0 and 1")
        if self.variant not in VARIANTS:
            raise InputError(f"variant is {self.variant!r}; accepted: {', '.join(VARIANTS)}")
        if self.rest not in RESTS:
            raise InputError(f"rest is {self.rest!r}; accepted: {', '.join(RESTS)}")
        if self.rest == "reuse" and (self.width_rate is not None or self.backbone_rate > 0):
            raise InputError("rest 'reuse' teaches when all blocks run: leave width_rate and a joint backbone out")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed is {self.seed}; it must be at least 0 and below 2**31")
        if self.width_rate is not None and self.width_rate < 1 and self.backbone_rate == 0:
            raise InputError(
                f"width_rate is {self.width_rate:g} with a frozen backbone, whose neurons are in no order: "
                "train the backbone as well (joint), or leave the widths whole"
            )


def learning_rate_factor(done: float, warmup: float = 0.03, decay: float = 0.4) -> float:
    """Return the share of the learning rate when `done` of the training is: up, level, and down over the last part."""
    return max(0.0, min(1.0, (done + 1e-3) / warmup, (1 - done) / decay))

"""What the published E-3DSNN was trained by, as data (arXiv 2412.07360 and the configurations of its code)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from pointcloud.voxels import VoxelGrid


@dataclass(frozen=True)
class Optimisation:
    """How weights are learnt: SGD whose rate falls tenfold at `milestones`, or AdamW over one cycle, both in shares.

    `momenta` are those of AdamW's first moment at the ends and at the peak of the cycle, None leaves it alone;
    `most_gradient` clips, None does not.
    """

    method: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    epochs: int
    batch: int
    milestones: tuple[float, ...] = ()
    warmup: float = 0.0
    start_divisor: float = 10.0
    end_divisor: float = 100.0
    betas: tuple[float, float] = (0.9, 0.999)
    momenta: tuple[float, float] | None = None
    most_gradient: float | None = None

    def make(self, weights: Iterable[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return the optimizer, and the schedule of its rate over so many `steps`; ValueError on less than one."""
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, all epochs together, got {steps}")
        if self.method == "sgd":
            sgd = torch.optim.SGD(weights, self.learning_rate, 0.9, weight_decay=self.weight_decay, nesterov=True)
            return sgd, MultiStepLR(sgd, [round(share * steps) for share in self.milestones], 0.1)
        adamw = torch.optim.AdamW(weights, self.learning_rate, self.betas, weight_decay=self.weight_decay)
        high, low = self.momenta or (0.0, 0.0)
        return adamw, OneCycleLR(
            adamw,
            self.learning_rate,
            total_steps=steps,
            pct_start=self.warmup * (1 - 1e-9),  # torch divides by zero where the warm-up is one step exactly
            cycle_momentum=self.momenta is not None,
            max_momentum=high,
            base_momentum=low,
            div_factor=self.start_divisor,
            final_div_factor=self.end_divisor,
        )


@dataclass(frozen=True)
class CloudRecipe:
    """How clouds are changed and cut into cells of `cell` before a classifier or segmenter takes them.

    A voxel has x y z and `attributes` of one of its points. Points outside `limits` (lower and upper corner) are moved
    to its faces, as published. `turns` is the chance of a turn about z by any angle, `flips` that of a mirrored x and
    that of a mirrored y, `mixes` that of a batch in which every two clouds become one. `views` are a test's angles.
    """

    attributes: tuple[str, ...]
    cell: float
    optimisation: Optimisation
    unit_ball: bool = False
    limits: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    turns: float = 0.0
    scales: tuple[float, float] = (1.0, 1.0)
    largest_shift: float = 0.0
    flips: float = 0.0
    jitter: float = 0.0
    largest_jitter: float = 0.0
    mixes: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    views: tuple[float, ...] = (0.0,)

    def loss(self) -> nn.CrossEntropyLoss:
        """Return the loss; points with the label -1 take no part."""
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        return nn.CrossEntropyLoss(weights, ignore_index=-1, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class DetectionRecipe:
    """How scenes are voxelised and changed before a detector takes them; the mean of a voxel's points goes in.

    A scene is mirrored at the x axis half of the time, turned by up to `largest_turn` radians and scaled.
    """

    classes: tuple[str, ...]
    grid: VoxelGrid
    points_per_voxel: int
    most_voxels: dict[Literal["train", "test"], int]
    largest_turn: float
    largest_scaling: float
    optimisation: Optimisation


MODELNET40_RECIPE = CloudRecipe(
    ("normal",),
    0.01,
    Optimisation("sgd", 0.1, 1e-3, epochs=300, batch=16, milestones=(0.6, 0.8)),
    unit_ball=True,
    scales=(0.9, 1.1),
    largest_shift=0.2,
    label_smoothing=0.2,
)
SEMANTIC_KITTI_RECIPE = CloudRecipe(
    ("intensity",),
    0.05,
    Optimisation("adamw", 2e-3, 5e-3, epochs=100, batch=24, warmup=0.04),
    limits=((-35.2, -35.2, -4.0), (35.2, 35.2, 2.0)),
    turns=0.5,
    scales=(0.9, 1.1),
    flips=0.5,
    jitter=0.005,
    largest_jitter=0.02,
    mixes=0.8,
    class_weights=(
        3.1557, 8.7029, 7.8281, 6.1354, 6.3161, 7.9937, 8.9704, 10.1922, 1.6155, 4.2187, 1.9385, 5.5455, 2.0198,
        2.6261, 1.3212, 5.1102, 2.5492, 5.8585, 7.3929,
    ),
    views=(0.0, math.pi / 2, math.pi, 3 * math.pi / 2),
)  # fmt: skip
KITTI_RECIPE = DetectionRecipe(
    ("Car",),
    VoxelGrid((0, -40, -3), (70.4, 40, 1), (0.05, 0.05, 0.1)),
    points_per_voxel=5,
    most_voxels={"train": 16_000, "test": 40_000},
    largest_turn=math.pi / 4,
    largest_scaling=0.05,
    optimisation=Optimisation(
        "adamw",
        0.01,
        0.01,
        epochs=80,
        batch=8,
        warmup=0.4,
        end_divisor=1e4,
        betas=(0.9, 0.99),
        momenta=(0.95, 0.85),
        most_gradient=10.0,
    ),
)

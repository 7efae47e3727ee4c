"""The head that finds objects as peaks of a heatmap (CenterPoint, arXiv 2006.11275), with an IoU branch."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadConfig:
    """Classes, channels, how targets are drawn and how peaks become detections; tuples have one entry a class.

    Peaks below `peak_threshold` go before scores are rectified, which lifts low ones (a vehicle's 0.001 to 0.11), and
    detections below `score_threshold` after it. `rectifier` is the exponent of the predicted IoU in the score,
    `suppression` the overlap above which the worse of two boxes of a class goes. `axis`, which no published network
    has, learns the line along which an object stands apart from which end is its front: where both ends look alike,
    the mean of both headings is what cosine and sine alone would learn.
    """

    classes: tuple[str, ...] = ("vehicle", "pedestrian", "cyclist")
    channels: int = 64
    fewest_cells: int = 2  # radius of a peak in cells
    peak_overlap: float = 0.1
    box_weight: float = 2.0
    most_peaks: int = 500
    rectifier: tuple[float, ...] = (0.68, 0.71, 0.65)
    suppression: tuple[float, ...] = (0.7, 0.6, 0.55)
    peak_threshold: float = 0.1
    score_threshold: float = 0.1
    axis: bool = False

    def __post_init__(self) -> None:
        if not len(self.classes) == len(self.rectifier) == len(self.suppression):
            raise ValueError(
                f"{len(self.classes)} classes, {len(self.rectifier)} rectifier and {len(self.suppression)} suppression "
                "values given; give one a class"
            )

    @property
    def regression(self) -> dict[str, int]:
        """Channels of the branches whose outputs are, in this order, the values of `coding.to_values`."""
        return {"center": 2, "center_z": 1, "dim": 3, "rot": 2, **({"axis": 2} if self.axis else {})}


class CenterHead(nn.Module):
    """A shared convolution and one branch of two convolutions for each kind of output."""

    def __init__(self, config: HeadConfig, channels_in: int) -> None:
        super().__init__()
        outputs = {**config.regression, "iou": 1, "heatmap": len(config.classes)}
        self.shared = nn.Sequential(*_conv(channels_in, config.channels))
        self.branches = nn.ModuleDict()
        for name, channels in outputs.items():
            last = nn.Conv2d(config.channels, channels, 3, padding=1)
            assert last.bias is not None
            # Every cell starts as a peak with probability 0.1, so that the many empty ones do not drown the few.
            nn.init.constant_(last.bias, -2.19 if name == "heatmap" else 0)
            self.branches[name] = nn.Sequential(*_conv(config.channels, config.channels), last)

    def forward(self, x: Float[Tensor, "batch channels_in y x"]) -> dict[str, Float[Tensor, "batch channels y x"]]:
        """Return the raw output of every branch, in float32; `heatmap` holds logits."""
        shared = self.shared(x)
        return {name: branch(shared).float() for name, branch in self.branches.items()}


def _conv(channels_in: int, channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()

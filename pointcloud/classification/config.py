"""Classifiers and segmenters as data, and this data as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pointcloud.e3dsnn.config import E3DSNNConfig
from pointcloud.shapes import PARTS, SHAPES

VALUES = 6  # of a voxel: its mean point, and that point's offset from the centre


@dataclass(frozen=True)
class ModelConfig:
    """What a cloud, or with a decoder each of its points, is sorted into; the unit ball is `cells` voxels wide.

    ValueError if the network has another number of classes or values.
    """

    classes: tuple[str, ...]
    network: E3DSNNConfig
    cells: int = 32

    def __post_init__(self) -> None:
        if len(self.classes) != self.network.classes or self.network.values != VALUES:
            raise ValueError(
                f"a network of {self.network.values} values and {self.network.classes} classes does not fit"
                f" {VALUES} values and {len(self.classes)} names"
            )
        if self.cells < 1:
            raise ValueError(f"cells must be 1 or more, got {self.cells}")

    @property
    def task(self) -> str:
        """`segments` if every point gets a class, else `shapes`."""
        return "segments" if self.network.decoder else "shapes"

    def without_spikes(self) -> ModelConfig:
        """Return the same network with ReLUs in place of neurons."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, levels=0))

    def to_json(self) -> str:
        """Return all of it as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Return what `to_json` was called on; ValueError if the text is none of its."""
        try:
            parts = json.loads(text)
            network: dict[str, Any] = {
                name: tuple(x) if isinstance(x, list) else x for name, x in parts["network"].items()
            }
            return cls(tuple(parts["classes"]), E3DSNNConfig(**network), parts["cells"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"this is no configuration of a classifier of this version ({error})") from error


# Small enough to be trained on two CPU cores.
SHAPES_TINY = ModelConfig(SHAPES, E3DSNNConfig(VALUES, len(SHAPES), 16, (32, 64, 96), (1, 1, 1)))
SEGMENTS_TINY = ModelConfig(PARTS, E3DSNNConfig(VALUES, len(PARTS), 16, (32, 64, 96), (1, 1, 1), decoder=(32, 48, 64)))

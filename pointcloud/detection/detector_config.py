"""Whole detectors as data, and this data as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pointcloud.detection.bev import BEVConfig
from pointcloud.detection.head import HeadConfig
from pointcloud.dsvt.config import TINY, WAYMO_PILLAR, WAYMO_VOXEL, DSVTConfig


@dataclass(frozen=True)
class DetectorConfig:
    """The three parts of a detector, and the point attributes that follow x y z in its input."""

    dsvt: DSVTConfig
    attributes: tuple[str, ...] = ("intensity",)
    bev: BEVConfig = BEVConfig()
    head: HeadConfig = HeadConfig()

    def __post_init__(self) -> None:
        if self.dsvt.values != 3 + len(self.attributes):
            raise ValueError(f"{self.dsvt.values} values a point do not fit x y z and {', '.join(self.attributes)}")
        if any(cells % max(self.bev.upsample) for cells in self.dsvt.grid.shape[:2]):
            raise ValueError(f"a grid of {self.dsvt.grid.shape} voxels cannot be halved to {max(self.bev.upsample)}")

    def to_json(self) -> str:
        """Return all of it as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectorConfig:
        """Return what `to_json` was called on; ValueError if the text is none of its."""
        try:
            return _rebuild(cls, json.loads(text))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is no detector configuration of this version ({error})") from error


def _rebuild(kind: Any, value: Any) -> Any:
    """Return plain JSON as the dataclasses and tuples that a type annotation names."""
    if hasattr(kind, "__dataclass_fields__"):
        hints = get_type_hints(kind)
        return kind(**{name: _rebuild(hints[name], part) for name, part in value.items()})
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        parts = [kinds[0]] * len(value) if kinds[-1] is ... else kinds
        return tuple(_rebuild(part, item) for part, item in zip(parts, value, strict=True))
    return value


WAYMO_PILLAR_DETECTOR = DetectorConfig(WAYMO_PILLAR, ("intensity", "elongation"))
WAYMO_VOXEL_DETECTOR = DetectorConfig(WAYMO_VOXEL, ("intensity", "elongation"))
# Small enough to be trained on two CPU cores.
DSVT_TINY = DetectorConfig(
    TINY,
    bev=BEVConfig(blocks=(0, 1, 1), filters=(64, 64, 128), upsample_filters=(64, 64, 64)),
    head=HeadConfig(channels=32, axis=True),
)

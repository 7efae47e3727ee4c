"""Whole detectors as data, and this data as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pointcloud.detection.backbones import SpikingConfig, map_grid
from pointcloud.detection.bev import BEVConfig
from pointcloud.detection.head import HeadConfig
from pointcloud.dsvt.config import TINY, WAYMO_PILLAR, WAYMO_VOXEL, DSVTConfig
from pointcloud.voxels import VoxelGrid

BACKBONES = {"dsvt": DSVTConfig, "e3dsnn": SpikingConfig}  # by their names in files


@dataclass(frozen=True)
class DetectorConfig:
    """The three parts of a detector, and the point attributes that follow x y z in its input."""

    backbone: DSVTConfig | SpikingConfig
    attributes: tuple[str, ...] = ("intensity",)
    bev: BEVConfig = BEVConfig()
    head: HeadConfig = HeadConfig()

    def __post_init__(self) -> None:
        if self.backbone.values != 3 + len(self.attributes):
            raise ValueError(f"{self.backbone.values} values a point do not fit x y z and {', '.join(self.attributes)}")
        if any(cells % max(self.bev.upsample) for cells in self.grid.shape[:2]):
            raise ValueError(f"a grid of {self.grid.shape} voxels cannot be halved to {max(self.bev.upsample)}")

    @property
    def grid(self) -> VoxelGrid:
        """The grid whose cells, seen from above, are those that the head looks at."""
        return map_grid(self.backbone)

    @property
    def on_spconv(self) -> bool:
        """Whether the backbone needs spconv, as the spiking one does."""
        return isinstance(self.backbone, SpikingConfig)

    def to_json(self) -> str:
        """Return all of it as one line of JSON, the backbone under its own name."""
        whole = dataclasses.asdict(self)
        name = next(name for name, kind in BACKBONES.items() if isinstance(self.backbone, kind))
        return json.dumps({name: whole.pop("backbone"), **whole})

    @classmethod
    def from_json(cls, text: str) -> DetectorConfig:
        """Return what `to_json` was called on; ValueError if the text is none of its."""
        try:
            whole = json.loads(text)
            name = next(iter(BACKBONES.keys() & whole.keys()))
            backbone = _rebuild(BACKBONES[name], whole.pop(name))
            hints = get_type_hints(cls)
            return cls(backbone, **{part: _rebuild(hints[part], value) for part, value in whole.items()})
        except (TypeError, KeyError, AttributeError, StopIteration) as error:
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
# The same map, head and scenes with spikes before them.
E3DSNN_TINY = DetectorConfig(
    SpikingConfig(VoxelGrid((-38.4, -38.4, -2.0), (38.4, 38.4, 4.0), (0.12, 0.12, 0.25)), 4, 16, (32, 64), (1, 1), 64),
    bev=DSVT_TINY.bev,
    head=DSVT_TINY.head,
)
MODELS = {"dsvt-tiny": DSVT_TINY, "e3dsnn-tiny": E3DSNN_TINY}  # what `pointcloud train detect` trains


def config_of(model: str) -> DetectorConfig:
    """Return the configuration of a model by its name; ValueError if there is none."""
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; accepted: {', '.join(MODELS)}")
    return MODELS[model]

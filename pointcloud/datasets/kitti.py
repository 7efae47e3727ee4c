"""KITTI's object benchmark: 7,481 scans with boxes of what its camera sees (Geiger et al., CVPR 2012)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from pointcloud.boxes.geometry import points_in_boxes
from pointcloud.datasets.labelled import read_names
from pointcloud.files import read_points
from pointcloud.points import PointCloud
from pointcloud.scenes import Scene

KITTI = ("Car", "Pedestrian", "Cyclist")
TYPES = (*KITTI, "Van", "Truck", "Person_sitting", "Tram", "Misc", "DontCare")
# What looks so much like a class that to find it is neither right nor wrong, as in KITTI's own evaluation.
NEIGHBOURS = {"Van": "Car", "Person_sitting": "Pedestrian"}
IMAGE = (1242, 375)  # pixels of most frames, where no picture tells its own
# What is easy, moderate and hard: least height in pixels, most occlusion, most truncation.
DIFFICULTIES = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))


@dataclass(frozen=True)
class Calibration:
    """Where the camera stands: from the LiDAR into its rectified coordinates, and from there into pixels."""

    camera: Float[Tensor, "4 4"]
    picture: Float[Tensor, "3 4"]

    def in_picture(self, xyz: Float[Tensor, "points 3"], size: tuple[int, int]) -> Bool[Tensor, " points"]:
        """Return which points lie in front of the camera and inside a picture of (width, height) pixels."""
        seen = torch.nn.functional.pad(xyz.double(), (0, 1), value=1.0) @ self.camera.T
        u, v, w = (seen @ self.picture.T).unbind(1)
        return (seen[:, 2] > 0) & (u >= 0) & (u < size[0] * w) & (v >= 0) & (v < size[1] * w)


class Objects(NamedTuple):
    """Labelled objects: type, box in the LiDAR's coordinates, and difficulty (0 easy, 1, 2 hard, -1 none of these)."""

    types: list[str]
    boxes: Float[Tensor, "objects 7"]
    difficulties: Int[Tensor, " objects"]


class KITTIObjects(Dataset[Scene]):
    """The scans that `ImageSets/SPLIT.txt` names, in `root/training`, with the boxes of `classes`.

    Points that the camera does not see, beside which nothing is labelled, are left out unless `whole`. The cloud has
    `intensity`, and `label` and `instance` as in driving scenes. Vans and sitting persons that are not among `classes`
    come last, as cars and pedestrians without a point: such boxes are ignored. `ground` metres are taken off z: -1.73
    puts it at 0, where detectors of driving scenes have it; the published recipe leaves it. FileNotFoundError where a
    list or file is missing, ValueError on broken ones and unknown classes.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        classes: tuple[str, ...] = KITTI,
        *,
        whole: bool = False,
        ground: float = 0.0,
    ) -> None:
        if split == "test":
            raise ValueError("split is 'test', whose labels are not public; accepted: 'train', 'val' and 'trainval'")
        unknown = [name for name in classes if name not in TYPES[:-1]]
        if unknown:
            raise ValueError(f"there is no class {', '.join(unknown)}; accepted: {', '.join(TYPES[:-1])}")
        self.root, self.classes, self.whole, self.ground = Path(root), classes, whole, ground
        self.frames = read_names(self.root / "ImageSets" / f"{split}.txt", "KITTI's object benchmark")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Scene:
        frame, folder = self.frames[index], self.root / "training"
        cloud = read_points(folder / "velodyne" / f"{frame}.bin", "kitti")
        calibration = read_calibration(folder / "calib" / f"{frame}.txt")
        objects = read_objects(folder / "label_2" / f"{frame}.txt", calibration)
        if not self.whole:
            seen = calibration.in_picture(cloud.xyz, picture_size(folder / "image_2" / f"{frame}.png"))
            cloud = PointCloud(cloud.xyz[seen], {name: column[seen] for name, column in cloud.attributes.items()})
        own = [row for row, name in enumerate(objects.types) if name in self.classes]
        near = [
            row for row, name in enumerate(objects.types) if NEIGHBOURS.get(name) in self.classes and row not in own
        ]
        names = [*(objects.types[row] for row in own), *(NEIGHBOURS[objects.types[row]] for row in near)]
        classes = torch.tensor([self.classes.index(name) for name in names], dtype=torch.int64)
        return _scene(cloud, objects.boxes[own + near], classes, len(own), self.ground)


def read_calibration(path: str | Path) -> Calibration:
    """Return the calibration of a frame; FileNotFoundError without the file, ValueError where it lacks a matrix."""
    rows = {}
    for line in _lines(Path(path)):
        name, _, numbers = line.partition(":")
        rows[name.strip()] = numbers.split()
    matrices = []
    for name, shape in (("P2", (3, 4)), ("R0_rect", (3, 3)), ("Tr_velo_to_cam", (3, 4))):
        try:
            matrices.append(np.array(rows.get(name, []), np.float64).reshape(shape))
        except ValueError as error:
            raise ValueError(f"{path} must hold {name} with {math.prod(shape)} numbers: {error}") from error
    picture, rectified, moved = matrices
    if not all(np.isfinite(matrix).all() for matrix in matrices) or abs(np.linalg.det(rectified @ moved[:, :3])) < 1e-6:
        raise ValueError(f"{path} holds a calibration that no camera has; take the file of the frame again")
    camera = np.eye(4)
    camera[:3] = rectified @ moved
    return Calibration(torch.from_numpy(camera), torch.from_numpy(picture))


def read_objects(path: str | Path, calibration: Calibration) -> Objects:
    """Return the objects of a label file but regions of DontCare; errors as those of `read_calibration`.

    A file has the lower middle of a box in the camera's coordinates (x right, y down), height, width and length.
    """
    types, rows = [], []
    for number, line in enumerate(_lines(Path(path)), 1):
        name, *numbers = line.split() or [""]
        try:
            row = [float(each) for each in numbers[:14]]
        except ValueError:
            row = []
        if name not in TYPES or len(row) < 14 or not np.isfinite(row).all():
            raise ValueError(f"line {number} of {path} must be one of {', '.join(TYPES)} and 14 numbers, got {line!r}")
        if name != "DontCare":
            types.append(name)
            rows.append(row)
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 14)
    seen = torch.nn.functional.pad(table[:, 10:13], (0, 1), value=1.0)
    xyz = (seen @ calibration.camera.inverse().T)[:, :3]
    height, width, length = table[:, 7:10].unbind(1)
    xyz[:, 2] += height / 2
    heading = (-table[:, 13] - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    sizes = torch.stack([length, width, height, heading], 1)
    return Objects(types, torch.cat([xyz, sizes], 1).float(), _difficulties(table))


def picture_size(path: Path) -> tuple[int, int]:
    """Return the (width, height) that the header of a PNG says, or that of most frames if there is no such file."""
    if not path.is_file():
        return IMAGE
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is no PNG picture; remove it, or take it again")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _difficulties(table: Float[Tensor, "objects 14"]) -> Int[Tensor, " objects"]:
    truncation, occlusion, pixels = table[:, 0], table[:, 1], table[:, 6] - table[:, 4]
    found = torch.full((len(table),), -1)
    for level, (height, most_occlusion, most_truncation) in reversed(list(enumerate(DIFFICULTIES))):
        found[(pixels >= height) & (occlusion <= most_occlusion) & (truncation <= most_truncation)] = level
    return found


def _scene(
    cloud: PointCloud, boxes: Float[Tensor, "boxes 7"], classes: Int[Tensor, " boxes"], own: int, ground: float
) -> Scene:
    """Return points and boxes on the ground; only the first `own` boxes get the points in them."""
    inside = points_in_boxes(cloud.xyz, boxes[:own])
    instance = torch.where(inside.any(1), inside.long().argmax(1), -1) if own else torch.full((len(cloud),), -1)
    label = torch.cat([classes, torch.tensor([-1])])[instance]
    counts = instance[instance >= 0].bincount(minlength=len(boxes))
    down = torch.tensor([0.0, 0.0, ground])
    attributes = {"intensity": cloud.attributes["intensity"], "label": label, "instance": instance}
    return Scene(
        PointCloud(cloud.xyz - down, attributes), torch.cat([boxes[:, :3] - down, boxes[:, 3:]], 1), classes, counts
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]

"""SemanticKITTI: 43,552 scans of a rotating LiDAR with a class for every point (Behley et al., arXiv 1904.01416)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from pointcloud.datasets.labelled import LabelledCloud, check_split
from pointcloud.files import read_labels, read_points
from pointcloud.points import PointCloud

# The ids of files that make a class; the first is the one that predictions are written with. Moving things count
# with those at rest; all other ids (unlabelled, outliers, other structures and objects) are not learnt.
RAW_IDS = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (20, 13, 16, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
SEMANTIC_KITTI = tuple(RAW_IDS)
NOT_LEARNT = (0, 1, 52, 99)
SEQUENCES = {"train": (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), "val": (8,), "test": tuple(range(11, 22))}


class SemanticKITTI(Dataset[LabelledCloud]):
    """The scans of a split in `root/sequences/NN/velodyne`, with the attributes `intensity` and `label`.

    A label is a row of `SEMANTIC_KITTI`, or -1; scans of `test`, whose labels are not public, have none. Sequences that
    are not there are left out. FileNotFoundError where none is, or a scan lacks its labels; ValueError on unknown
    splits and broken files.
    """

    def __init__(self, root: str | Path, split: Literal["train", "val", "test"]) -> None:
        check_split(split, tuple(SEQUENCES))
        self.split = split
        folders = [Path(root) / "sequences" / f"{number:02}" for number in SEQUENCES[split]]
        self.scans = [scan for folder in folders for scan in sorted((folder / "velodyne").glob("*.bin"))]
        if not self.scans:
            raise FileNotFoundError(
                f"no scan of {split} lies in {root}; give the folder that holds sequences/{folders[0].name}/velodyne"
            )

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> LabelledCloud:
        path = self.scans[index]
        cloud = read_points(path, "kitti")
        if self.split == "test":
            return LabelledCloud(cloud, None)
        raw, _ = read_labels(path.parents[1] / "labels" / f"{path.stem}.label", len(cloud))
        try:
            label = from_raw(raw)
        except ValueError as error:
            raise ValueError(f"the labels of {path}: {error}") from error
        return LabelledCloud(PointCloud(cloud.xyz, {**cloud.attributes, "label": label}), None)


def from_raw(raw: Int[Tensor, " points"]) -> Int[Tensor, " points"]:
    """Return the rows of `SEMANTIC_KITTI` for the ids of a file, -1 for what is not learnt.

    ValueError on an id that the data set does not have.
    """
    table = torch.full((0x10000,), -2)
    table[list(NOT_LEARNT)] = -1
    for row, ids in enumerate(RAW_IDS.values()):
        table[list(ids)] = row
    labels = table[raw]
    unknown = raw[labels == -2].unique().tolist()
    if unknown:
        known = sorted({*NOT_LEARNT, *(each for ids in RAW_IDS.values() for each in ids)})
        raise ValueError(f"there are no classes {unknown[:5]}; accepted: {', '.join(map(str, known))}")
    return labels


def to_raw(labels: Int[Tensor, " points"]) -> Int[Tensor, " points"]:
    """Return the ids that the benchmark takes for rows of `SEMANTIC_KITTI`; 0, unlabelled, for -1."""
    return labels.new_tensor([ids[0] for ids in RAW_IDS.values()] + [0])[labels]

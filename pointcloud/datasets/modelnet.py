"""ModelNet40: 12,311 objects of 40 classes (Wu et al., arXiv 1406.5670), as points with normals."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pointcloud.datasets.labelled import LabelledCloud, check_split, read_names
from pointcloud.files import replacing
from pointcloud.points import PointCloud
from sparse_kernels.points import farthest_point_sampling

MODELNET40 = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
FOLDER = "modelnet40_normal_resampled"


class ModelNet40(Dataset[LabelledCloud]):
    """The objects of the folder `modelnet40_normal_resampled`, each thinned to `points` by farthest point sampling.

    A cloud has the attribute `normal` (points 3); None keeps all 10,000 points. Thinned clouds are kept as `.npy` in
    the folder `cache`, if one is given, from which they are read at once the next time. FileNotFoundError where the
    list of the split or an object is missing, ValueError on unknown splits, classes and broken files.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"],
        points: int | None = 8192,
        cache: str | Path | None = None,
    ) -> None:
        check_split(split, ("train", "test"))
        if points is not None and points < 1:
            raise ValueError(f"points must be 1 or more, or None for all of a file, got {points}")
        self.root, self.points = Path(root), points
        self.cache = None if cache is None else Path(cache)
        self.names = read_names(self.root / f"modelnet40_{split}.txt", FOLDER)
        self.labels = [_label(name, split) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledCloud:
        rows = self._rows(self.names[index])
        return LabelledCloud(PointCloud(rows[:, :3].contiguous(), {"normal": rows[:, 3:]}), self.labels[index])

    def _rows(self, name: str) -> Tensor:
        if self.cache is None or self.points is None:
            return self._thinned(name)
        kept = self.cache / f"{name}-{self.points}.npy"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            whole = io.BytesIO()  # np.save to a file would not say that a disk is full
            np.save(whole, self._thinned(name).numpy())
            with replacing(kept) as temporary:
                temporary.write_bytes(whole.getbuffer())
        return _checked(kept, lambda: np.load(kept, allow_pickle=False))

    def _thinned(self, name: str) -> Tensor:
        path = self.root / name.rpartition("_")[0] / f"{name}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}, which the list of the split names")
        rows = _checked(path, lambda: np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2))
        if self.points is None or len(rows) <= self.points:
            return rows
        picks = farthest_point_sampling(rows[:, :3].contiguous(), torch.tensor([0, len(rows)]), self.points)
        return rows[picks[0]]


def _label(name: str, split: str) -> int:
    shape = name.rpartition("_")[0]  # `night_stand_0001` is a `night_stand`
    if shape not in MODELNET40:
        raise ValueError(f"modelnet40_{split}.txt names {name}, of no class of ModelNet40; take that list again")
    return MODELNET40.index(shape)


def _checked(path: Path, read: Callable[[], np.ndarray]) -> Tensor:
    try:
        rows = read()
    except Exception as error:  # a broken header of .npy may be anything
        raise ValueError(f"{path} cannot be read as rows of x, y, z and a normal: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 6 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"{path} must hold rows of six finite numbers, x y z and a normal; found {rows.shape}")
    return torch.from_numpy(rows.astype(np.float32))

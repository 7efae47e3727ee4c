"""Random point clouds written and read again: the same, or refused in one sentence; and labels of any file."""

from __future__ import annotations

import random
import tempfile
import warnings
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from pointcloud.files import SUFFIXES, read_labels, read_points, write_points
from pointcloud.points import PointCloud

WRITTEN = (".ply", ".npy", ".bin")
NAMES = ("intensity", "ring", "label", "color", "normal", "elongation", "time", "x", "red", "scalar_a", "two words", "")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
OTHERS = (torch.uint8, torch.bool, torch.int16, torch.complex64)
WIDTHS = ((), (), (), (1,), (2,), (3,), (0,), (2, 2))
FIGURES = (float("nan"), float("inf"), -1.0, 1e30, 2.0**24 + 1, 0.1)


def call_files(number: int) -> str:
    """Make the call of that number and return what it was about and what became of it; raises where it is wrong."""
    generator = random.Random(number)
    torch.manual_seed(number)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / f"cloud{generator.choice((*3 * WRITTEN, *SUFFIXES, '.txt', '', '.PLY'))}"
        try:
            cloud = _cloud(generator)
            write_points(path, cloud)
            assert [file.name for file in path.parent.iterdir()] == [path.name], "something else was left behind"
            layout = generator.choice((None, None, None, "kitti", "nuscenes", "other"))
            again = read_points(path, layout)
            if layout is None:
                _check_same(cloud, again, path.suffix.lower())
            if generator.random() < 0.1:
                read_labels(path, generator.choice((None, len(cloud))))
        except (ValueError, ImportError) as error:
            text = str(error).replace(folder, "FOLDER")
            assert text and "\n" not in text, f"not one line: {text!r}"
            return f"{path.suffix}: {text}"
    return f"{path.suffix}: done"


def _cloud(generator: random.Random) -> PointCloud:
    count = generator.choice((0, 1, 2, 50))
    xyz = torch.randn(count, 3) * generator.choice((1, 100, 1e6))
    attributes = {
        generator.choice(NAMES): _column(generator, count + (generator.random() < 0.03))
        for _ in range(generator.choice((0, 1, 1, 2, 3)))
    }
    if count and generator.random() < 0.1:
        xyz[0, 0] = generator.choice(FIGURES)
    origin = generator.choice(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (5e5, 4e6, 0.0)))
    return PointCloud(xyz, attributes, origin)


def _column(generator: random.Random, count: int) -> Tensor:
    shape = (count, *generator.choice(WIDTHS))
    column = torch.rand(shape) if generator.random() < 0.5 else torch.randint(0, 200, shape)
    column = column.to(generator.choice(DTYPES if generator.random() < 0.9 else OTHERS))
    if column.numel() and column.is_floating_point() and generator.random() < 0.1:
        column.view(-1)[0] = generator.choice(FIGURES)
    return column


def _kept(attributes: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """Return what a file of a kind has to bring back, by the names that it has there."""
    if suffix != ".ply":
        columns = ("intensity", "elongation", "no_label_zone") if suffix == ".npy" else ("intensity",)
        return {name: attributes[name] for name in takewhile(attributes.__contains__, columns)}
    kept: dict[str, Tensor] = {}
    for name, values in attributes.items():
        own, wide = "_".join(name.split()).removeprefix("scalar_"), values[:1].numel()
        if wide == 1 or (name in ("color", "normal") and wide == 3):
            kept[own] = values
        else:
            kept |= {f"{own}_{number}": column for number, column in enumerate(values.flatten(1).T)}
    return kept


def _check_same(cloud: PointCloud, again: PointCloud, suffix: str) -> None:
    """Assert that no point was lost or moved, and that every attribute that the file can hold came back unchanged."""
    assert len(again) == len(cloud)
    if not cloud.xyz.isfinite().all():
        return
    before, after = (x.xyz.double() + torch.tensor(x.origin, dtype=torch.float64) for x in (cloud, again))
    assert (before - after).abs().max() <= 1e-3 + 1e-6 * before.abs().max(), "points have moved"
    kept = _kept(cloud.attributes, suffix)
    assert kept.keys() == again.attributes.keys(), f"{sorted(kept)} went in, {sorted(again.attributes)} came back"
    for name, column in kept.items():
        old = column.float().double() if suffix == ".bin" or name in ("intensity", "elongation") else column.double()
        new, least = again.attributes[name].double(), 0.0
        if name == "color" and column.shape[1:] == (3,):  # bytes in a file
            old, least = (old / 255 if column.dtype == torch.uint8 else old.clamp(0, 1)), 0.5 / 255 + 1e-6
        assert (old.flatten() - new.flatten()).abs().max() <= least, f"{name} has changed"

"""A cloud with what it is, and where the files of a data set must lie."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pointcloud.points import PointCloud


class LabelledCloud(NamedTuple):
    """A cloud and its class; None where each point has its own in the attribute `label` (-1: not to be learnt)."""

    cloud: PointCloud
    label: int | None


def check_split(split: str, splits: tuple[str, ...]) -> None:
    """ValueError unless `split` is one of `splits`."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; accepted: {', '.join(splits)}")


def read_names(path: Path, what: str) -> list[str]:
    """Return the lines of a list; FileNotFoundError if it is not there, ValueError if it names nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give the folder of {what}, in which that file lies")
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise ValueError(f"{path} names nothing; take the list of {what} again")
    return names

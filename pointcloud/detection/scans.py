"""Which files of points there are, and where what is written about each goes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pointcloud.files import SUFFIXES

SUMMARY = "summary"


@dataclass(frozen=True)
class Scan:
    """A file of points, and the path without suffix of what is written about it."""

    source: Path
    target: Path

    def output(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)


def find_scans(paths: Sequence[Path], output: Path) -> Iterator[Scan]:
    """Yield the given files, then those in the given folders and below, sorted; one folder is listed at a time.

    Outputs keep the folders below the deepest one that holds all `paths`, and the whole file name where the stem alone
    would not tell two files apart. FileNotFoundError on a missing path, ValueError on one inside `output`.
    """
    output = output.resolve()
    files: dict[Path, list[str]] = {}
    folders: list[Path] = []
    for path in paths:
        if path.is_dir():
            folders.append(path.resolve())
        elif path.exists():
            files.setdefault(path.parent.resolve(), []).append(path.name)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    places = [*files, *folders]
    if any(place.is_relative_to(output) for place in places):
        raise ValueError(f"the output folder {output} holds the points to read; give another one")
    root = os.path.commonpath(places) if places else ""
    for folder, names in files.items():
        yield from _scans(folder, list(dict.fromkeys(names)), root, output)
    for top in folders:
        for folder, below, names in os.walk(top):
            below[:] = sorted(name for name in below if Path(folder, name) != output)
            points = sorted(name for name in names if name.lower().endswith(SUFFIXES) and name[0] != ".")
            yield from _scans(Path(folder), points, root, output)


def _scans(folder: Path, names: list[str], root: str, output: Path) -> Iterator[Scan]:
    stems = Counter(map(_stem, names))
    for name in names:
        alone = stems[_stem(name)] == 1 and _stem(name) != SUMMARY
        yield Scan(folder / name, output / folder.relative_to(root) / (_stem(name) if alone else name))


def _stem(name: str) -> str:
    endings = (suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    return name[: len(name) - len(max(endings, key=len, default=""))]

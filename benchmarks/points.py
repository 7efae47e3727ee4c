"""Time of searches in clouds of points beside scipy's k-d tree, torch-fps and torch-quickfps, and plain torch.

On a CPU scipy gets as many workers as torch has threads; torch-fps and ours sample a cloud on one thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.rows import Row, installed, origin, show
from benchmarks.timing import median_seconds, seconds_each
from sparse_kernels.points import (
    Neighbors,
    ball_query,
    farthest_point_sampling,
    group,
    k_nearest_neighbors,
    three_nearest_interpolation,
)

PEERS = ("ms_torch", "ms_scipy", "ms_torch_fps", "ms_torch_quickfps")
COLUMNS = ("op", "cloud", "points", "found", "threads", *PEERS, "ms_ours", "speedup", "same")
Run = Callable[[], Any]


def make_cloud(kind: str, points: int, device: str) -> Tensor:
    """Return points in a cube, in ten dense clusters, or on a sphere."""
    there: dict[str, Any] = dict(generator=torch.Generator(device).manual_seed(0), device=device)
    drawn = torch.randn(points, 3, **there)
    if kind == "cube":
        return torch.rand(points, 3, **there)
    if kind == "clusters":
        return drawn * 0.01 + torch.randn(10, 3, **there)[torch.randint(10, (points,), **there)]
    return torch.nn.functional.normalize(drawn)


def whole(points: Tensor) -> Tensor:
    """Return the offsets of one cloud."""
    return torch.tensor([0, len(points)], device=points.device)


def plain_sampling(points: Tensor, count: int) -> Tensor:
    """Sample with a loop over torch's own operations."""
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    picks = torch.zeros(count, dtype=torch.int64, device=points.device)
    for sample in range(1, count):
        nearest = torch.minimum(nearest, (points - points[picks[sample - 1]]).square().sum(1))
        picks[sample] = nearest.argmax()
    return picks


def plain_neighbors(points: Tensor, queries: Tensor, k: int) -> Tensor:
    """Find neighbours with a whole matrix of distances, a chunk of queries at a time."""
    return torch.cat([torch.cdist(part, points).topk(k, largest=False).indices for part in queries.split(1024)])


def sampling_peers(points: Tensor, count: int) -> dict[str, Run]:
    """Return what else samples on this device; rows as one batch."""
    peers: dict[str, Run] = {"ms_torch": lambda: plain_sampling(points, count)}
    batch = points[None]
    if installed("torch-fps", "torch_fps"):
        run = importlib.import_module("torch_fps").farthest_point_sampling
        mask = torch.ones(batch.shape[:2], dtype=torch.bool, device=points.device)
        peers["ms_torch_fps"] = lambda: run(batch, mask, count, random_start=False)[0]
    if installed("torch-quickfps", "torch_quickfps"):
        sample = importlib.import_module("torch_quickfps").sample_idx
        peers["ms_torch_quickfps"] = lambda: sample(batch, count, start_idx=0)[0]
    return peers


def neighbor_peers(points: Tensor, k: int) -> dict[str, Run]:
    """Return what else finds neighbours on this device, building its tree in the measured time as we do."""
    peers: dict[str, Run] = {"ms_torch": lambda: plain_neighbors(points, points, k)}
    if not points.is_cuda and installed("scipy", "scipy"):
        tree = importlib.import_module("scipy.spatial").cKDTree
        numbers = points.numpy()
        peers["ms_scipy"] = lambda: torch.from_numpy(
            tree(numbers).query(numbers, k, workers=torch.get_num_threads())[1]
        )
    return peers


def measure(op: str, kind: str, points: int, found: int, device: str, repeats: int) -> Row:
    """Return a row; `same` is the share of rows found that the fastest peer finds too, in any order."""
    cloud = make_cloud(kind, points, device)
    offsets = whole(cloud)
    ours: Run
    if op == "sampling":
        ours = partial(farthest_point_sampling, cloud, offsets, found)
        peers = sampling_peers(cloud, found)
    else:
        ours = partial(k_nearest_neighbors, cloud, offsets, cloud, offsets, found)
        peers = neighbor_peers(cloud, found)
    times = _take_turns({"ms_ours": ours, **peers}, device, repeats)
    fastest = min(peers, key=lambda name: times[name])
    return _row(op, kind, points, found, device) | times | {
        "speedup": times[fastest] / times["ms_ours"], "same": _same(ours(), peers[fastest]()),
    }  # fmt: skip


def measure_rest(kind: str, points: int, found: int, device: str, repeats: int) -> list[Row]:
    """Return rows of what nothing else here does: balls, and groups and interpolation with their gradients."""
    cloud = make_cloud(kind, points, device)
    offsets, centers = whole(cloud), cloud[:: max(1, points // 1024)].contiguous()
    around = offsets, centers, whole(centers)
    index = k_nearest_neighbors(cloud, *around, found).index
    features = torch.randn(points, 64, device=device, requires_grad=True)
    few = torch.randn(len(centers), 64, device=device, requires_grad=True)
    runs: dict[str, Run] = {
        "ball": lambda: ball_query(cloud, *around, 0.2, found),
        "group, forward+backward": lambda: group(cloud, centers, index, features).sum().backward(),
        "interpolation, forward+backward": lambda: (
            three_nearest_interpolation(few, centers, whole(centers), cloud, offsets).sum().backward()
        ),
    }
    return [
        _row(op, kind, points, found, device) | {"ms_ours": _least(run, device, repeats)} for op, run in runs.items()
    ]


def _row(op: str, kind: str, points: int, found: int, device: str) -> Row:
    about = {"op": op, "dtype": "float32", "cloud": kind, "points": points, "found": found}
    return origin(device) | about | dict.fromkeys(PEERS)


def _take_turns(runs: dict[str, Run], device: str, repeats: int) -> dict[str, float]:
    """Return the fewest milliseconds of each, so that what disturbs one for a while disturbs all."""
    turns = [seconds_each(runs.values(), device) for _ in range(repeats + 1)][1:]
    return {name: min(times) * 1e3 for name, times in zip(runs, zip(*turns, strict=True), strict=True)}


def _least(run: Run, device: str, repeats: int) -> float:
    """Return the fewest milliseconds."""
    return min(median_seconds(run, device, 1) for _ in range(repeats)) * 1e3


def _same(ours: Tensor | Neighbors, theirs: Tensor) -> float:
    mine = ours.index if isinstance(ours, Neighbors) else ours
    mine, theirs = mine.sort(-1).values, theirs.to(mine.device).long().view_as(mine).sort(-1).values
    pairs = zip(mine, theirs, strict=True)
    return sum(torch.isin(a, b).float().mean().item() for a, b in pairs) / len(mine)


def main(
    device: str = "cpu",
    quick: Annotated[bool, typer.Option(help="some seconds on two cores")] = False,
    tiny: Annotated[bool, typer.Option(help="small clouds: does it all run?")] = False,
    threads: Annotated[int, typer.Option(help="of the CPU; 0: as many as torch takes")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times beside the libraries that are installed (extra `bench`), and write the rows as JSON."""
    if threads:
        torch.set_num_threads(threads)
    repeats = 2 if tiny else 5 if quick else 15
    sizes = [(200, 50)] if tiny else [(8192, 1024)] if quick else [(8192, 1024), (32_768, 4096), (131_072, 8192)]
    kinds = ("cube",) if tiny else ("cube", "clusters", "sphere")
    rows: list[Row] = []
    for points, samples in sizes:
        for kind in kinds:
            few = repeats if points < 10_000 else 2  # plain torch takes its time
            rows.append(measure("sampling", kind, points, samples, device, few))
            rows.append(measure("neighbours", kind, points, 16, device, few))
            rows += measure_rest(kind, points, 16, device, repeats)
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

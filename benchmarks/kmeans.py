"""Time and inertia of a k-means iteration against scikit-learn's Lloyd and faiss, from the same start."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.rows import installed, origin, show
from benchmarks.timing import median_seconds
from sparse_kernels import kmeans

COLUMNS = ("library", "heads", "rows", "head_dim", "clusters", "ms_per_iteration", "speedup", "inertia")
LARGEST = 2**28  # distances that plain_torch holds at once
ITERATIONS = (5, 15)  # the difference between the two leaves out what is done once

Cluster = Callable[[Tensor, Tensor, int], Tensor]  # (rows, start, iterations) -> centroids


def make_rows(heads: int, rows: int, head_dim: int, clusters: int, device: str) -> tuple[Tensor, Tensor]:
    """Return rows around twice as many centres as clusters are asked for, and random rows to start from."""
    there: dict[str, Any] = dict(generator=torch.Generator(device).manual_seed(0), device=device)
    centres = torch.randn(heads, 2 * clusters, head_dim, **there)
    chosen = torch.randint(2 * clusters, (heads, rows, 1), **there).expand(-1, -1, head_dim)
    x = (centres.gather(1, chosen) + torch.randn(heads, rows, head_dim, **there))[None]
    return x, x[:, :, torch.randperm(rows, **there)[:clusters]].clone()


def plain_torch(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run all heads at once in torch alone, on rows as they are, so many at a time as memory allows."""
    centroids, places = start[0], torch.arange(len(start[0]), device=x.device)[:, None] * start.shape[2]
    size = max(1, LARGEST // (start.shape[1] * start.shape[2]))
    for _ in range(iterations):
        norms = centroids.square().sum(-1)[:, None]
        labels = [torch.baddbmm(norms, rows, centroids.mT, alpha=-2).argmin(-1) for rows in x[0].split(size, 1)]
        flat = (torch.cat(labels, 1) + places).flatten()
        sums = torch.zeros_like(centroids).flatten(0, 1).index_add_(0, flat, x[0].flatten(0, 1)).view_as(centroids)
        sizes = flat.bincount(minlength=centroids.shape[0] * centroids.shape[1]).view(*centroids.shape[:2], 1)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return centroids[None]


def ours(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run all heads in one call."""
    return kmeans(x, start, iterations=iterations, tolerance=0).centroids


def ours_in_bfloat16(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run all heads in one call on rounded rows, as the attention methods do."""
    return kmeans(x.bfloat16(), start, iterations=iterations, tolerance=0, precision="bfloat16").centroids


def scikit_learn(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run Lloyd's algorithm of scikit-learn, head after head."""
    cluster = importlib.import_module("sklearn.cluster").KMeans
    limits = importlib.import_module("threadpoolctl").threadpool_limits
    options: dict[str, Any] = dict(n_clusters=start.shape[2], n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
    with limits(torch.get_num_threads()):
        heads = [
            cluster(init=first, **options).fit(rows).cluster_centers_
            for rows, first in zip(x[0].numpy(), start[0].numpy(), strict=True)
        ]
    return torch.from_numpy(np.stack(heads))[None]


def faiss(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run faiss, head after head."""
    library = importlib.import_module("faiss")
    library.omp_set_num_threads(torch.get_num_threads())
    heads = []
    for rows, first in zip(x[0].numpy(), start[0].numpy(), strict=True):
        trainer = library.Kmeans(
            x.shape[3], start.shape[2], niter=iterations, min_points_per_centroid=1, max_points_per_centroid=len(rows)
        )
        trainer.train(rows, init_centroids=first)
        heads.append(trainer.centroids.reshape(first.shape))
    return torch.from_numpy(np.stack(heads))[None]


def inertia(x: Tensor, centroids: Tensor) -> float:
    """Return the mean squared distance of a row to its nearest centroid, one head at a time."""
    return sum(
        torch.cdist(rows.double(), means.double()).amin(-1).square().mean().item()
        for rows, means in zip(x[0], centroids[0].to(x), strict=True)
    ) / len(x[0])


def measure(heads: int, rows: int, head_dim: int, clusters: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each library that is installed; `speedup` is its time over ours."""
    x, start = make_rows(heads, rows, head_dim, clusters, device)
    libraries: dict[str, Cluster] = {"ours": ours, "ours, bfloat16": ours_in_bfloat16}
    if device != "cpu":  # what else there is runs on the CPU
        libraries["torch"] = plain_torch
    for name, module, cluster in (("scikit-learn", "sklearn", scikit_learn), ("faiss", "faiss", faiss)):
        if device == "cpu" and installed(name, module):
            libraries[name] = cluster
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for name in libraries for count in ITERATIONS}
    for _ in range(repeats):  # in turns, so that what else the machine does meets all of them
        for name, count in times:
            run = partial(libraries[name], x, start, count)
            times[name, count].append(median_seconds(run, device, 1))
    measured, few, many = [], *ITERATIONS
    for name, cluster in libraries.items():
        short, long = (statistics.median(times[name, count]) for count in ITERATIONS)
        measured.append(
            origin(device) | {
                "dtype": "bfloat16" if "bfloat16" in name else "float32", "library": name,
                "heads": heads, "rows": rows, "head_dim": head_dim,
                "clusters": clusters, "ms_per_iteration": (long - short) / (many - few) * 1e3,
                "ms_all": long * 1e3, "iterations": many, "inertia": inertia(x, cluster(x, start, many)),
            }
        )  # fmt: skip
    for row in measured:
        row["speedup"] = row["ms_per_iteration"] / measured[0]["ms_per_iteration"]
    return measured


def main(
    device: str = "cpu",
    quick: Annotated[bool, typer.Option(help="under a minute on two cores")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times per iteration and write the rows as JSON."""
    cases = [(4, 8192, 64, 256)] if quick else [(4, 8192, 64, 256), (4, 8192, 128, 256), (2, 32768, 64, 512)]
    show([row for case in cases for row in measure(*case, device, 5)], COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

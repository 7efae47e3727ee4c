"""Time of event-driven sparse convolution beside our own dense one, by the share of channels that fired.

Surfaces are what a scanner sees of an object (about 11 neighbours a voxel) and of a street (about 5).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.rows import origin, show
from benchmarks.sparse_conv import KERNEL, SHAPE, surface
from benchmarks.timing import median_seconds
from sparse_kernels.sparse_conv import KernelMap, sparse_conv, submanifold_map
from sparse_kernels.spike_conv import break_even, spike_conv

COLUMNS = (
    "surface", "voxels", "neighbors", "channels", "steps", "rate", "threads", "ms_dense", "ms_dense_bfloat16",
    "ms_events", "ms_chosen", "speedup", "break_even", "max_error",
)  # fmt: skip
RATES = 0.05, 0.1, 0.2, 0.3
CHANNELS = 16, 32, 64, 128, 256
VOXELS = 8_000


def torus(voxels: int) -> Tensor:
    """Return coordinates (batch z y x) of a torus, whole: a closed surface, as points sampled from a mesh are."""
    across = math.sqrt(voxels / (4 * math.pi**2 * 0.4 * 1.5))  # of the ring, in voxels; the tube is 0.4 of it
    u, v = (x.flatten() * 2 * math.pi for x in torch.meshgrid(*[torch.linspace(0, 1, 1200)] * 2, indexing="ij"))
    ring = across * (1 + 0.4 * v.cos())
    points = torch.stack([across * 0.4 * v.sin(), ring * u.sin(), ring * u.cos()], 1)
    places = (points - points.amin(0)).long().unique(dim=0)
    return torch.nn.functional.pad(places, (1, 0)).int()


def measure(
    name: str,
    coordinates: Tensor,
    kernel_map: KernelMap,
    channels: int,
    rate: float,
    steps: int,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    """Return a row: medians of calls that take turns, indices cached, everything else inside the clock."""
    generator = torch.Generator().manual_seed(channels)
    draws = torch.rand(steps, len(coordinates), channels, generator=generator)
    spikes = (draws < rate / steps).float().to(device)
    weight = torch.randn(channels, *[KERNEL] * 3, channels, generator=generator).to(device)
    half, events = weight.bfloat16(), "triton" if spikes.is_cuda else "cpu"
    calls = {
        "ms_dense": lambda: sparse_conv(spikes.sum(0), weight, kernel_map),
        "ms_dense_bfloat16": lambda: sparse_conv(spikes.sum(0).bfloat16(), half, kernel_map),
        "ms_events": lambda: spike_conv(spikes, weight, kernel_map, backend=events),
        "ms_chosen": lambda: spike_conv(spikes, weight, kernel_map),
    }
    times: dict[str, list[float]] = {column: [] for column in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for column, call in calls.items():
            times[column].append(median_seconds(call, device, 1) * 1e3)
    medians = {column: sorted(some)[repeats // 2] for column, some in times.items()}
    exact = sparse_conv(spikes.sum(0).double(), weight.double(), kernel_map)
    limit = break_even(KERNEL**3, channels, channels, torch.float32, device, torch.get_num_threads())
    return origin(device) | {
        "surface": name, "voxels": len(coordinates), "neighbors": kernel_map.pairs() / len(coordinates),
        "channels": channels, "steps": steps, "rate": rate, "threads": torch.get_num_threads(), **medians,
        "speedup": medians["ms_dense"] / medians["ms_events"], "break_even": limit,
        "max_error": (calls["ms_events"]() - exact).abs().max().item(),
    }  # fmt: skip


@torch.no_grad()
def main(
    device: str = "cpu",
    quick: Annotated[bool, typer.Option(help="fewer repeats, one thread count")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times, and write the rows as JSON; `rate` is the mean number of spikes of a channel."""
    repeats, rows = 5 if quick else 11, []
    threads = torch.get_num_threads()
    for count in (threads,) if quick or device != "cpu" else sorted({1, threads}):
        torch.set_num_threads(count)
        for name, coordinates in (("object", torus(VOXELS)), ("street", surface(VOXELS))):
            kernel_map = submanifold_map(coordinates.to(device), SHAPE if name == "street" else (512,) * 3, KERNEL)
            for channels in CHANNELS:
                for steps, rate in [(1, rate) for rate in RATES] + [(4, 0.3)]:
                    rows.append(measure(name, coordinates, kernel_map, channels, rate, steps, repeats, device))
    torch.set_num_threads(threads)
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

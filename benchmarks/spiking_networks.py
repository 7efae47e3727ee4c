"""Time and energy of whole spiking networks: on integers, on true spikes, on spikes in bundles, and with ReLU.

E-3DSNN of published sizes on a closed surface, SpikePoint on two windows of a made recording. Random weights are
normalised by the input, so that their neurons fire as trained ones do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.rows import installed, origin, show
from benchmarks.spike_conv import VOXELS, torus
from benchmarks.timing import seconds_each

if TYPE_CHECKING:
    from pointcloud.metering import Energy

SIZES = {"E-3DSNN-T": "TINY", "E-3DSNN-S": "SMALL", "E-3DSNN-L": "LARGE"}
MILLISECONDS = "ms_integers", "ms_spikes", "ms_bundled", "ms_relu"
COLUMNS = "network", "threads", *MILLISECONDS, "rate", "microjoules", "microjoules_relu"
CLASSES = tuple(f"class {number}" for number in range(10))


def settled(network: nn.Module, *given: Any) -> nn.Module:
    """Return a network of random weights in evaluation mode, whose normalisation has seen the input."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    network.train()(*given)
    return network.eval()


def times_in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of calls that take turns, after one round to warm up."""
    rounds = [seconds_each(calls.values(), "cpu") for _ in range(repeats + 1)][1:]
    return {name: statistics.median(times) * 1e3 for name, times in zip(calls, zip(*rounds, strict=True), strict=True)}


def rate_of(measured: Energy) -> float:
    """Return how many spikes a step brings for a place that could take one, in the layers that read spikes."""
    layers = [layer for layer in measured.layers if layer.part == "layer" and layer.reads == "spikes"]
    return sum(layer.additions for layer in layers) / sum(layer.dense for layer in layers)


def convolutional(name: str, repeats: int) -> dict[str, Any]:
    """Return the row of an E-3DSNN of a published size."""
    from pointcloud import e3dsnn, energy
    from pointcloud.nn import unroll

    config = getattr(e3dsnn, SIZES[name])
    voxels = torus(VOXELS)
    given = torch.randn(len(voxels), 6, generator=torch.Generator().manual_seed(0)), voxels, 1
    network = settled(e3dsnn.Classifier(config), *given)
    rectified = settled(e3dsnn.Classifier(replace(config, levels=0)), *given)

    def run(bundled: bool | None) -> Any:
        return unroll(network, bundled is not None, bool(bundled))(*given)

    calls = {"ms_integers": lambda: run(None), "ms_spikes": lambda: run(False), "ms_bundled": lambda: run(True)}
    times = times_in_turn(calls | {"ms_relu": lambda: rectified(*given)}, repeats)
    spiking, relu = energy(unroll(network), *given), energy(rectified, *given)
    return times | {"rate": rate_of(spiking), "microjoules": spiking.picojoules / 1e6,
                    "microjoules_relu": relu.picojoules / 1e6}  # fmt: skip


def on_events(name: str, repeats: int) -> dict[str, Any]:
    """Return the row of a SpikePoint of published size, on two windows of 1,024 events of a simulated recording."""
    from pointcloud import energy
    from pointcloud.spikepoint import SpikePoint, large, sample_cloud, small
    from pointcloud.spikepoint.patterns import make_recording

    generator = torch.Generator().manual_seed(0)
    events = make_recording(1_000_003).events
    windows = [events.between(start, start + 500_000) for start in (0, 250_000)]
    make = {"SpikePoint, small": small, "SpikePoint, large": large}[name]
    networks = [SpikePoint(make(CLASSES, spiking=spiking)) for spiking in (True, False)]
    clouds = torch.stack([sample_cloud(window, networks[0].config.points, generator) for window in windows])
    spiking, rectified = (settled(network, clouds, torch.Generator().manual_seed(0)) for network in networks)
    again = torch.Generator().manual_seed(0)
    calls = {"ms_spikes": lambda: spiking(clouds, again), "ms_relu": lambda: rectified(clouds, again)}
    measured, relu = (energy(network, clouds, again) for network in (spiking, rectified))
    return times_in_turn(calls, repeats) | {
        "rate": rate_of(measured), "microjoules": measured.picojoules / len(clouds) / 1e6,
        "microjoules_relu": relu.picojoules / len(clouds) / 1e6,
    }  # fmt: skip


@torch.no_grad()
def main(
    quick: Annotated[bool, typer.Option(help="fewer repeats, one thread count")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times and energies an input, and write the rows as JSON."""
    if not installed("spconv", "spconv"):
        return
    repeats, threads, rows = 3 if quick else 15, torch.get_num_threads(), []
    for count in (threads,) if quick else sorted({1, threads}):
        torch.set_num_threads(count)
        for name in SIZES:
            rows.append(origin("cpu") | {"network": name} | convolutional(name, repeats))
        for name in ("SpikePoint, small", "SpikePoint, large"):
            rows.append(origin("cpu") | {"network": name} | on_events(name, max(3, repeats // 5)))
    torch.set_num_threads(threads)
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

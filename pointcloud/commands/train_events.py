"""The command `train events`: a spiking network on recordings of moving patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import (
    Device,
    Threads,
    check_finite,
    check_seed,
    find_device,
    one_line_errors,
    set_threads,
)


def train_events(
    output: Annotated[Path, typer.Option(help="folder of checkpoint and weights; a run goes on where one stopped")],
    size: Annotated[str, typer.Option(help="tiny, or as published small or large")] = "tiny",
    steps: Annotated[int, typer.Option(min=1, help="steps in all")] = 3000,
    batch: Annotated[int, typer.Option(min=3, help="windows a step, three from each recording")] = 48,
    learning_rate: Annotated[float, typer.Option(min=0, help="at its peak")] = 3e-3,
    coding: Annotated[str | None, typer.Option(help="rate, latency or direct; default: that of the size")] = None,
    neuron: Annotated[str | None, typer.Option(help="lif, plif or integer; default: that of the size")] = None,
    spiking: Annotated[bool, typer.Option(help="spikes, or ReLU in the same shape")] = True,
    seed: Annotated[int, typer.Option(min=0, help="of weights and of spikes")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes that make recordings")] = 1,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train SpikePoint on eight motions; its weights are written every 200 steps."""
    with one_line_errors():
        check_finite(learning_rate=learning_rate)
        check_seed(seed)
        from pointcloud.spikepoint.config import large, small, tiny
        from pointcloud.spikepoint.patterns import CLASSES
        from pointcloud.spikepoint.training import train

        sizes = {"tiny": tiny, "small": small, "large": large}
        if size not in sizes:
            raise ValueError(f"unknown size {size!r}; accepted: {', '.join(sizes)}")
        set_threads(threads)
        given = {name: value for name, value in (("coding", coding), ("neuron", neuron)) if value is not None}
        config = sizes[size](CLASSES, spiking=spiking, **given)
        place = find_device(device)
        train(output, config, steps, batch, learning_rate, seed=seed, workers=workers, device=place, report=_say)
        typer.echo(f"wrote {output / 'events.safetensors'}")


def _say(line: str) -> None:
    print(line, flush=True)

"""The commands `train shapes` and `train segments`: networks on clouds sampled from meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pointcloud.commands.options import Device, Threads, check_finite, find_device, one_line_errors, set_threads

Output = Annotated[Path, typer.Option(help="folder of checkpoint and weights; a run goes on where one stopped")]
Steps = Annotated[int, typer.Option(min=1, help="steps in all")]
Batch = Annotated[int, typer.Option(min=2, help="clouds a step")]
Rate = Annotated[float, typer.Option(min=0, help="learning rate at the peak of its one cycle")]
Seed = Annotated[int, typer.Option(min=0, max=90, help="first weights, and which clouds are seen")]
ReLU = Annotated[bool, typer.Option("--relu", help="the same network without spikes")]
Workers = Annotated[int, typer.Option(min=0, help="processes that make clouds")]


def train_shapes(
    output: Output,
    steps: Steps = 2400,
    batch: Batch = 32,
    learning_rate: Rate = 3e-3,
    seed: Seed = 0,
    relu: ReLU = False,
    workers: Workers = 1,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train shapes-tiny, which tells ten shapes apart; its weights are written every 100 steps."""
    _train("shapes", output, steps, batch, learning_rate, seed, relu, workers, device, threads)


def train_segments(
    output: Output,
    steps: Steps = 500,
    batch: Batch = 32,
    learning_rate: Rate = 3e-3,
    seed: Seed = 0,
    relu: ReLU = False,
    workers: Workers = 1,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train segments-tiny, which finds the parts of objects; its weights are written every 100 steps."""
    _train("segments", output, steps, batch, learning_rate, seed, relu, workers, device, threads)


def _train(
    task: Literal["shapes", "segments"],
    output: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    relu: bool,
    workers: int,
    device: str,
    threads: int | None,
) -> None:
    with one_line_errors():
        check_finite(learning_rate=learning_rate)
        from pointcloud.classification.config import SEGMENTS_TINY, SHAPES_TINY
        from pointcloud.classification.training import train

        set_threads(threads)
        place = find_device(device, on_spconv=True)
        config = SHAPES_TINY if task == "shapes" else SEGMENTS_TINY
        config = config.without_spikes() if relu else config
        train(output, config, steps, batch, learning_rate, seed=seed, workers=workers, device=place, report=_say)
        typer.echo(f"wrote {output / 'model.safetensors'}")


def _say(line: str) -> None:
    print(line, flush=True)

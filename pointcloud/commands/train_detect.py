"""The command `train detect`: a detector on ray-cast driving scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import Device, Threads, check_finite, find_device, one_line_errors, set_threads


def train_detect(
    output: Annotated[Path, typer.Option(help="folder of checkpoint and weights; a run goes on where one stopped")],
    model: Annotated[str, typer.Option(help="dsvt-tiny, or e3dsnn-tiny with a spiking backbone")] = "dsvt-tiny",
    steps: Annotated[int, typer.Option(min=1, help="steps in all")] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="scenes a step")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0, help="at the peak of its one cycle")] = 3e-3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="compute in bfloat16: fast with AVX512_BF16")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes that make scenes")] = 1,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train a detector; its weights are written every 100 steps."""
    with one_line_errors():
        check_finite(learning_rate=learning_rate)
        from pointcloud.detection.detector_config import config_of
        from pointcloud.detection.training import train

        set_threads(threads)
        config = config_of(model)
        place = find_device(device, config.on_spconv)
        rest = {"bfloat16": bfloat16, "workers": workers, "device": place}
        train(output, steps, batch, learning_rate, config, report=_say, **rest)
        typer.echo(f"wrote {output / 'detector.safetensors'}")


def _say(line: str) -> None:
    print(line, flush=True)

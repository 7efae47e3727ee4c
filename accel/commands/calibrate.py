"""`accel calibrate`: the table of blocks that may rest, for one model and number of steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.commands import options


def calibrate(
    prompts: Annotated[list[str], typer.Argument(help="what the videos show that errors are measured on")],
    model: options.Model = None,
    budget: Annotated[float, typer.Option(help="share of all blocks that is computed")] = 0.5,
    ages: Annotated[int, typer.Option(min=1, help="most steps that something is reused for")] = 3,
    group: Annotated[int | None, typer.Option(min=1, help="blocks that rest together; default: all")] = None,
    order: Annotated[int, typer.Option(min=0, max=1, help="0 repeats what a block added, 1 extrapolates it")] = 0,
    warmup: Annotated[float, typer.Option(min=0, help="first steps that are computed: a number, or a share")] = 1,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    steps: options.Steps = None,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    output: Annotated[Path, typer.Option(help="JSON, for --cache table:table=FILE")] = Path("table.json"),
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Measure how far a model's output moves if blocks rest at a step, and choose when they do."""
    with options.one_line_errors():
        from accel.files import check_file
        from accel.workbench.calibration import Measure, calibrate
        from accel.workbench.conditions import check_made_of_text
        from accel.workbench.loading import load_pipeline

        options.set_threads(threads)
        check_file(output)
        loaded = load_pipeline(model, device, dtype)
        check_made_of_text(loaded.pipeline, "accel calibrate")
        asked: Any = dict(steps=steps, seed=seed, frames=frames, height=height, width=width)
        report = partial(typer.echo, err=True)
        measure = Measure(ages, order, group)
        table = calibrate(loaded, prompts, budget, asked, measure, warmup=warmup, report=report)
        table.save(output)
        for step, word in enumerate(table.steps):
            typer.echo(f"step {step:2d}  {word}")
        options.print_written([output])

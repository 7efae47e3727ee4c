"""`accel draw`: the blocks that a method visits, as text and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel.commands import options
from accel.errors import InputError


def draw(
    method: Annotated[str, typer.Argument(help="NAME or NAME:OPTION=VALUE")],
    grid: Annotated[
        str, typer.Option(help="tokens in time, height and width, for a method's static patterns")
    ] = "9,16,16",
    prompt: Annotated[str | None, typer.Option(help="draw what a generation of it plans, not static patterns")] = None,
    model: options.Model = None,
    step: Annotated[int | None, typer.Option(help="of the generation, from 0; default: half-way")] = None,
    layer: Annotated[int, typer.Option(help="of the transformer, from 0")] = 0,
    head: Annotated[int, typer.Option(help="of the layer, from 0")] = 0,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    steps: options.Steps = None,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    output: Annotated[Path | None, typer.Option(help="PNG of blocks, and of pairs on small grids")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Show which blocks a method visits: its static patterns, or with --prompt those of one head in a generation."""
    with options.one_line_errors():
        from accel.files import check_file
        from accel.methods.registry import from_text
        from accel.workbench.conditions import check_made_of_text
        from accel.workbench.drawing import draw_generation, draw_patterns, write_picture
        from accel.workbench.loading import load_pipeline

        try:
            chosen = from_text(method)
        except ValueError as error:
            raise InputError(str(error)) from error
        check_file(output)
        if prompt is None:
            drawings = draw_patterns(chosen, *_grid(grid))
        else:
            loaded = load_pipeline(model, device, dtype)
            check_made_of_text(loaded.pipeline, "accel draw")
            asked = {"steps": steps, "seed": seed, "frames": frames, "height": height, "width": width}
            middle = (steps or loaded.defaults["num_inference_steps"]) // 2
            drawings = [draw_generation(loaded, chosen, prompt, middle if step is None else step, layer, head, **asked)]
        for drawing in drawings:
            typer.echo(drawing.text())
        if output is not None:
            write_picture(drawings, output)
            options.print_written([output])


def _grid(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"grid is {text!r}; give three numbers of 1 or more with commas between them, like 9,16,16")
    frames, height, width = (int(part) for part in parts)
    return frames, height, width

"""`accel generate`: make a video, and with --compare measure it against the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accel.commands import options
from accel.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from accel.methods.method import Method
    from accel.workbench.loading import LoadedPipeline
    from accel.workbench.their_caches import Cache


def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    model: options.Model = None,
    method: Annotated[
        str | None, typer.Option(help="sparse-attention method, NAME or NAME:OPTION=VALUE, or dense; default: preset")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="lets blocks rest, as NAME or NAME:OPTION=VALUE (easy, table, ...), or none")
    ] = None,
    density: Annotated[float | None, typer.Option(help="share of query-key pairs computed in sparse calls")] = None,
    dense_steps: Annotated[float | None, typer.Option(help="share of the steps, from the first, kept dense")] = None,
    steps: options.Steps = None,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    guidance_scale: Annotated[float | None, typer.Option(help="classifier-free guidance; 1 is none")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="make it densely as well and measure both")] = False,
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("accel-output"),
    image: Annotated[Path | None, typer.Option(help="first picture, for an image-to-video model")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what the video does not show; needs guidance")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA file, folder or Hugging Face id")] = None,
    offload: Annotated[str | None, typer.Option(help="model or group: on the device only while it computes")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8: the transformer's weights, by torchao")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="compile the transformer's blocks")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Make a video with sparse attention, a cache or both; with --compare also densely, and say how near and fast."""
    with options.one_line_errors():
        from accel.files import check_writable
        from accel.workbench.loading import load_pipeline
        from accel.workbench.preparing import Preparation

        how = Preparation(lora, offload, quantize, compiled)
        rests = _cache(cache)
        chosen = _method(method, density, dense_steps, compare and rests is None)
        is_default = method is None and cache is None and density is None and dense_steps is None
        options.set_threads(threads)
        check_writable(output)
        loaded = load_pipeline(model, device, dtype, how)
        asked = dict(steps=steps, seed=seed, frames=frames, height=height, width=width, guidance_scale=guidance_scale)
        asked |= dict(image=image, negative_prompt=negative_prompt)
        if is_default and (rests := loaded.calibrated(steps)) is not None:
            typer.echo("blocks rest by the table that lies beside the model; without it: --cache none")
        if compare:
            _compare(loaded, chosen, rests, prompt, output, asked)
        else:
            _generate(loaded, chosen, rests, prompt, output, asked)


def _cache(text: str | None) -> Cache | None:
    from accel.workbench.their_caches import from_text

    try:
        return None if text in (None, "none") else from_text(text)
    except ValueError as error:
        raise InputError(str(error)) from error


def _method(name: str | None, density: float | None, dense_steps: float | None, compare: bool) -> Method | None:
    """Return the method object, None for dense."""
    from accel.methods.registry import METHODS, PRESET, from_text

    name = PRESET if name is None else name
    given = {"density": density, "dense_steps": dense_steps}
    given = {option: value for option, value in given.items() if value is not None}
    if name == "dense":
        if compare or given:
            raise InputError(f"method dense has nothing to compare or to set; choose one of: {', '.join(METHODS)}")
        return None
    if name.split(":")[0] not in (PRESET, *METHODS):
        raise InputError(f"unknown method {name!r}; accepted: {PRESET}, dense, {', '.join(METHODS)}")
    try:
        return from_text(name, **given)
    except ValueError as error:
        raise InputError(str(error)) from error


def _generate(
    loaded: LoadedPipeline,
    method: Method | None,
    cache: Cache | None,
    prompt: str,
    output: Path,
    asked: dict[str, Any],
) -> None:
    from accel.workbench.generation import generate
    from accel.workbench.reporting import write_generation

    generation = generate(loaded, prompt, method, cache=cache, **asked)
    _say_choice(generation.report)
    options.print_written(write_generation(generation, output))


def _compare(
    loaded: LoadedPipeline,
    method: Method | None,
    cache: Cache | None,
    prompt: str,
    output: Path,
    asked: dict[str, Any],
) -> None:
    from accel.workbench.comparison import compare
    from accel.workbench.reporting import write_comparison

    comparison = compare(loaded, method, prompt, cache=cache, **asked)
    written = write_comparison(comparison, output)
    options.plain_console().print(_report_table(comparison.report))
    _say_choice(comparison.report)
    options.print_written(written)


def _say_choice(report: dict[str, Any]) -> None:
    """Say what a preset chose; that it stayed dense was a warning."""
    if report.get("chosen") and report["density"] is not None:
        typer.echo(report["chosen"])


def _report_table(report: dict[str, Any]) -> Table:
    from accel.workbench.figures import figure_rows

    way = report["method"] if report["cache"] == "none" else f"{report['method']}, cache {report['cache']}"
    table = options.folding_table(way, f"{report['model']}, {report['tokens']} tokens, {report['dtype']}")
    for row in figure_rows(report):
        table.add_row(*row)
    return table

"""`accel bench`: methods and caches against each other on the same videos."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.commands import options
from accel.errors import InputError

PROMPTS = (
    "a red circle moves left",
    "a large blue square moves up on a white background",
    "a small yellow triangle moves right and a large purple circle stays still on a gray background",
)
# Figure of a row -> head of its column.
COLUMNS = {
    "density": "density",
    "recall": "recall",
    "speedup": "speed-up",
    "attention_speedup": "attention",
    "planning_share": "planning",
    "blocks_computed": "blocks",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
}


def bench(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="what the videos show; default: three of one shape")
    ] = None,
    model: options.Model = None,
    methods: Annotated[
        str, typer.Option(help="NAME or NAME:OPTION=VALUE, or dense, with commas between them; default: all sparse")
    ] = "",
    caches: Annotated[
        str, typer.Option(help="NAME or NAME:OPTION=VALUE, or none, with commas between them; each with each method")
    ] = "none",
    densities: Annotated[str, typer.Option(help="measured densities of the sparse calls to compare at")] = "0.2,0.3",
    dense_steps: Annotated[str, typer.Option(help="shares of the steps, from the first, kept dense")] = "0,0.2",
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from 0")] = 3,
    steps: options.Steps = None,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="rows; a run goes on where one stopped")] = None,
    videos: Annotated[Path | None, typer.Option(help="folder that keeps the video of every new row")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of speed-up over likeness")] = None,
    block_plot: Annotated[Path | None, typer.Option(help="PNG of which block ran at which step")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Compare methods and caches with the dense pipeline, on the same videos at equal measured density."""
    with options.one_line_errors():
        from accel.files import check_file, check_writable
        from accel.methods.registry import SPARSE_METHODS
        from accel.workbench.bench import run_bench
        from accel.workbench.cases import cases
        from accel.workbench.conditions import check_made_of_text
        from accel.workbench.loading import load_pipeline
        from accel.workbench.rows import Rows

        names = _names(methods) if methods else SPARSE_METHODS
        chosen = cases(names, _shares("densities", densities), _shares("dense_steps", dense_steps), _names(caches))
        options.set_threads(threads)
        for file in (json_file, plot, block_plot):
            check_file(file)
        if videos is not None:
            check_writable(videos)
        rows = Rows(json_file, videos)
        loaded = load_pipeline(model, device, dtype)
        check_made_of_text(loaded.pipeline, "accel bench")
        loaded.pipeline.set_progress_bar_config(disable=True)
        asked: Any = dict(steps=steps, frames=frames, height=height, width=width)
        report = partial(typer.echo, err=True)
        made = run_bench(loaded, chosen, prompts or PROMPTS, range(seeds), rows, asked, report)
        _print(made)
        _draw(made, plot, block_plot)


def _names(text: str) -> list[str]:
    """Return what stands between commas; those of a tuple, as in adaspa:tile=(4,8,8), separate nothing."""
    return [name.strip() for name in re.split(r",(?![^(]*\))", text)]


def _shares(name: str, text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise InputError(f"{name} is {text!r}; give numbers with commas between them, like 0.2,0.3") from error


def _print(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from accel.workbench.rows import means

    summary = means(rows, list(COLUMNS))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in ("method", "cache", "dense", *COLUMNS.values()):
        table.add_column(head, overflow="fold")  # in 80 columns no head or name is cut
    for row in summary:
        numbers = ("-" if row[name] is None else f"{row[name]:.3g}" for name in COLUMNS)
        table.add_row(row["method"], row["cache"], f"{row['dense_share']:g}", *numbers)
    options.plain_console().print(table)


def _draw(rows: list[dict[str, Any]], plot: Path | None, block_plot: Path | None) -> None:
    from accel.workbench.pareto import draw_blocks, draw_pareto
    from accel.workbench.rows import means

    if plot is not None:
        draw_pareto(means(rows, list(COLUMNS)), plot)
    if block_plot is not None:
        draw_blocks(rows, block_plot)
    options.print_written([file for file in (plot, block_plot) if file is not None])

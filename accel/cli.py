"""The command line: `accel generate` makes and compares videos, `accel bench` compares methods, `accel info` tells
what this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

BENCH_PROMPTS = (
    "a red circle moves left",
    "a large blue square moves up on a white background",
    "a small yellow triangle moves right and a large purple circle stays still on a gray background",
)

app = typer.Typer(
    help="Faster video diffusion by sparse attention.", no_args_is_help=True, pretty_exceptions_show_locals=False
)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    model: Annotated[
        str | None, typer.Option(help="pipeline folder or Hugging Face id; default: the embedded shapes-wan")
    ] = None,
    method: Annotated[
        str, typer.Option(help="sparse-attention method, as NAME or NAME:OPTION=VALUE, or dense")
    ] = "svg-ear",
    density: Annotated[float | None, typer.Option(help="share of query-key pairs computed in sparse calls")] = None,
    dense_steps: Annotated[float | None, typer.Option(help="share of the steps, from the first, kept dense")] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise")] = 0,
    frames: Annotated[int | None, typer.Option(help="frames of the video")] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="classifier-free guidance; 1 is none")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="make it densely as well and measure both")] = False,
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("accel-output"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice")] = None,
) -> None:
    """Make a video with sparse attention; with --compare also densely, and report speed-up and likeness."""
    with _one_line_errors():
        from accel.workbench.loading import load_pipeline
        from accel.workbench.reporting import prepare_output

        chosen = _method(method, density, dense_steps, compare)
        _set_threads(threads)
        prepare_output(output)
        loaded = load_pipeline(model, device, dtype)
        options = dict(steps=steps, seed=seed, frames=frames, height=height, width=width, guidance_scale=guidance_scale)
        (_compare if compare else _generate)(loaded, chosen, prompt, output, options)


@app.command()
def bench(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="what the videos show; default: three of one shape")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="pipeline folder or Hugging Face id; default: the embedded shapes-wan")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="NAME or NAME:OPTION=VALUE, with commas between them; default: all")
    ] = "",
    densities: Annotated[str, typer.Option(help="measured densities of the sparse calls to compare at")] = "0.2,0.3",
    dense_steps: Annotated[str, typer.Option(help="shares of the steps, from the first, kept dense")] = "0,0.2",
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from 0")] = 3,
    steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    frames: Annotated[int | None, typer.Option(help="frames of the video")] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="rows; a run goes on where one stopped")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of speed-up over likeness")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice")] = None,
) -> None:
    """Compare methods with the dense pipeline and each other, on the same videos at equal measured density."""
    with _one_line_errors():
        from accel.methods import SPARSE_METHODS
        from accel.workbench.bench import Rows, cases, run_bench
        from accel.workbench.loading import load_pipeline
        from accel.workbench.reporting import prepare_output

        names = [name.strip() for name in methods.split(",")] if methods else SPARSE_METHODS
        chosen = cases(names, _shares("densities", densities), _shares("dense_steps", dense_steps))
        _set_threads(threads)
        for file in filter(None, (json_file, plot)):
            prepare_output(file.parent)
        rows = Rows(json_file)
        loaded = load_pipeline(model, device, dtype)
        loaded.pipeline.set_progress_bar_config(disable=True)
        options: Any = dict(steps=steps, frames=frames, height=height, width=width)
        report = partial(typer.echo, err=True)
        run_bench(loaded, chosen, prompts or BENCH_PROMPTS, range(seeds), rows, options, report)
        _print_bench(rows.rows, plot)


@app.command()
def info() -> None:
    """Show devices, versions, and for every kernel backend whether it runs here and why not."""
    import importlib.metadata

    import torch
    from rich.console import Console

    from accel.workbench.loading import embedded_folder
    from sparse_kernels import backend_reasons

    table = _table("what", "here")
    for device in _devices():
        table.add_row("device", device)
    for package in ("visual-accel", "torch", "diffusers", "transformers", "triton"):
        try:
            table.add_row(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(package, "not installed")
    for kind in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for backend, reason in backend_reasons(kind).items():
            table.add_row(f"backend {backend} on {kind}", "usable" if reason is None else f"not usable: {reason}")
    for dtype, instructions in _instruction_sets().items():
        table.add_row(f"CPU kernel, {dtype}", instructions or "not available")
    present = (embedded_folder() / "model_index.json").is_file()
    table.add_row("embedded model shapes-wan", "present" if present else "missing: give --model FOLDER_OR_ID")
    Console().print(table)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn input that cannot be used into one line on stderr and exit code 2."""
    from accel.workbench.loading import InputError

    try:
        yield
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _method(name: str, density: float | None, dense_steps: float | None, compare: bool) -> Any | None:
    """Return the method object, None for dense."""
    from accel.methods import METHODS, from_text
    from accel.workbench.loading import InputError

    options = {"density": density, "dense_steps": dense_steps}
    given = {option: value for option, value in options.items() if value is not None}
    if name == "dense":
        if compare or given:
            raise InputError(f"method dense has nothing to compare or to set; choose one of: {', '.join(METHODS)}")
        return None
    if name.split(":")[0] not in METHODS:
        raise InputError(f"unknown method {name!r}; accepted: dense, {', '.join(METHODS)}")
    try:
        return from_text(name, **given)
    except ValueError as error:
        raise InputError(str(error)) from error


def _set_threads(threads: int | None) -> None:
    import torch

    from accel.workbench.loading import InputError

    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    torch.set_num_threads(threads)


def _generate(loaded: Any, method: Any | None, prompt: str, output: Path, options: dict[str, Any]) -> None:
    from accel.workbench.generation import generate
    from accel.workbench.reporting import write_generation

    generation = generate(loaded, prompt, method, **options)
    _print_written(write_generation(generation, output))


def _compare(loaded: Any, method: Any, prompt: str, output: Path, options: dict[str, Any]) -> None:
    from rich.console import Console

    from accel.workbench.comparison import compare
    from accel.workbench.reporting import write_comparison

    comparison = compare(loaded, method, prompt, **options)
    written = write_comparison(comparison, output)
    Console().print(_report_table(comparison.report))
    _print_written(written)


def _shares(name: str, text: str) -> list[float]:
    from accel.workbench.loading import InputError

    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise InputError(f"{name} is {text!r}; give numbers with commas between them, like 0.2,0.3") from error


def _print_bench(rows: list[dict[str, Any]], plot: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from accel.workbench.bench import means

    columns = {"density": "density", "recall": "recall", "speedup": "speed-up", "attention_speedup": "attention"}
    columns |= {"planning_share": "planning", "psnr_db": "PSNR", "ssim": "SSIM"}
    summary = means(rows, list(columns))
    table = Table("method", "dense", *columns.values(), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in summary:
        numbers = ("-" if row[name] is None else f"{row[name]:.3g}" for name in columns)
        table.add_row(row["method"], f"{row['dense_share']:g}", *numbers)
    Console().print(table)
    if plot is not None:
        from accel.workbench.pareto import draw_pareto

        draw_pareto(summary, plot)
        _print_written([plot])


def _report_table(report: dict[str, Any]) -> Table:
    table = _table(report["method"], f"{report['model']}, {report['tokens']} tokens, {report['dtype']}")
    rows = {
        "dense": ("dense_seconds", "{:.2f} s"),
        "sparse": ("sparse_seconds", "{:.2f} s"),
        "speed-up": ("speedup", "{:.2f}x"),
        "attention speed-up": ("attention_speedup", "{:.2f}x"),
        "density of sparse calls": ("density", "{:.3f}"),
        "recall of sparse calls": ("recall", "{:.3f}"),
        "PSNR to dense": ("psnr_db", "{:.2f} dB"),
        "SSIM to dense": ("ssim", "{:.4f}"),
    }
    for label, (key, pattern) in rows.items():
        table.add_row(label, "-" if report[key] is None else pattern.format(report[key]))
    table.add_row("dense steps", f"{report['dense_steps']} of {report['steps']}")
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_written(files: list[Path]) -> None:
    for file in files:
        typer.echo(f"wrote {file}")


def _devices() -> list[str]:
    import torch

    from accel.workbench.reporting import device_name

    cpu = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"
    return [cpu, *(device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))]


def _instruction_sets() -> dict[str, str | None]:
    """Return what the CPU kernel uses for each element type on this machine."""
    import torch

    from sparse_kernels._extension import instruction_set

    return {name: instruction_set(getattr(torch, name)) for name in ("float32", "bfloat16")}

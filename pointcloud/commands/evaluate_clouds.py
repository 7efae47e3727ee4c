"""The commands `evaluate shapes` and `evaluate segments`: a model on clouds it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pointcloud.commands.options import Device, Spikes, Threads, find_device, one_line_errors, set_threads

Model = Annotated[str, typer.Argument(help="name of a shipped model, or a .safetensors file")]
Output = Annotated[Path, typer.Option(help="folder of the written files")]
Clouds = Annotated[int, typer.Option(min=1, help="how many evaluation clouds")]
First = Annotated[int, typer.Option(min=0, help="number of the first of them")]


def evaluate_shapes(
    model: Model = "shapes-tiny",
    output: Output = Path("evaluation"),
    clouds: Clouds = 1000,
    first: First = 0,
    spikes: Spikes = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the share of clouds whose shape is found; write it as JSON, with the confusion of classes as PNG."""
    _evaluate("shapes", model, output, clouds, first, spikes, device, threads)


def evaluate_segments(
    model: Model = "segments-tiny",
    output: Output = Path("evaluation"),
    clouds: Clouds = 500,
    first: First = 0,
    spikes: Spikes = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the mean overlap of parts found and true; write it as JSON, with the confusion of parts as PNG."""
    _evaluate("segments", model, output, clouds, first, spikes, device, threads)


def _evaluate(
    task: Literal["shapes", "segments"],
    model: str,
    output: Path,
    clouds: int,
    first: int,
    spikes: bool,
    device: str,
    threads: int | None,
) -> None:
    with one_line_errors():
        from rich.progress import Progress

        from pointcloud.classes import check_classes
        from pointcloud.classification.evaluation import evaluate, write_results
        from pointcloud.classification.shipped import load_model
        from pointcloud.nn import unroll
        from pointcloud.shapes import ShapeClouds

        set_threads(threads)
        place = find_device(device, on_spconv=True)
        network, samples = load_model(model, task).to(place), ShapeClouds(task, "evaluation", clouds, first)
        check_classes(network.config.classes, samples.classes, model)
        if spikes:
            unroll(network)
        with Progress(transient=True) as progress:
            bar = progress.add_task("clouds", total=clouds)
            confusion = evaluate(network, samples, lambda: progress.advance(bar))
        values = confusion.accuracies if task == "shapes" else confusion.overlaps
        for name, value in zip(confusion.classes, values.tolist(), strict=True):
            typer.echo(f"{name}: {'accuracy' if task == 'shapes' else 'overlap'} {value:.3f}")
        typer.echo(f"accuracy {confusion.accuracy:.4f}, mean overlap {confusion.mean_overlap:.4f} on {clouds} clouds")
        for file in write_results(confusion, output, model=model, clouds=clouds, first=first, spikes=spikes):
            typer.echo(f"wrote {file}")

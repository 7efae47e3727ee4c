"""The commands that say what clouds are, `classify`, and what each of their points is, `segment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pointcloud.commands.options import Device, Layout, Threads, find_device, one_line_errors, set_threads

Files = Annotated[list[Path], typer.Argument(help="files of points, or folders of them")]
Model = Annotated[str, typer.Option(help="name of a model that comes with the package, or a .safetensors file")]
Pictures = Annotated[bool, typer.Option(help="draw a PNG of each file")]
Output = Annotated[Path, typer.Option(help="folder of the written files")]


def classify(
    files: Files,
    model: Model = "shapes-tiny",
    output: Output = Path("classes"),
    pictures: Pictures = True,
    layout: Layout = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Say which shape each cloud has: JSON with all scores, a coloured PLY and a picture; goes on where it stopped."""
    _predict("shapes", files, model, output, pictures, layout, device, threads)


def segment(
    files: Files,
    model: Model = "segments-tiny",
    output: Output = Path("segments"),
    pictures: Pictures = True,
    layout: Layout = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Say which part each point is of: JSON, a PLY with labels and colours, a picture; goes on where it stopped."""
    _predict("segments", files, model, output, pictures, layout, device, threads)


def _predict(
    task: Literal["shapes", "segments"],
    files: list[Path],
    model: str,
    output: Path,
    pictures: bool,
    layout: str | None,
    device: str,
    threads: int | None,
) -> None:
    with one_line_errors():
        from pointcloud.classification.predict import predict_files
        from pointcloud.classification.shipped import load_model

        set_threads(threads)
        network = load_model(model, task).to(find_device(device, on_spconv=True))
        summary = predict_files(files, network, output, name=model, pictures=pictures, layout=layout)
    typer.echo(summary)
    typer.echo(f"wrote {output}")
    if summary.failed:
        raise typer.Exit(1)

"""The command that finds objects in files of points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import (
    Device,
    Layout,
    Threads,
    check_finite,
    find_device,
    one_line_errors,
    set_threads,
)


def detect(
    files: Annotated[list[Path], typer.Argument(help="files of points, or folders of them")],
    model: Annotated[str, typer.Option(help="name of a model that comes with the package, or a .safetensors file")] = (
        "dsvt-tiny"
    ),
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("detections"),
    pictures: Annotated[bool, typer.Option(help="draw a PNG of each file")] = True,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="least score of a detection; default: the model's")
    ] = None,
    intensity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="intensity of points in files that have none; default: 0.15, and a warning"),
    ] = None,
    full_intensity: Annotated[
        float | None,
        typer.Option(help="what the files call full intensity, as 255; default: found by their values, and a warning"),
    ] = None,
    ground: Annotated[float, typer.Option(help="z of the ground below the sensor in the files, as -1.73 in KITTI")] = 0,
    layout: Layout = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Find objects in point clouds: boxes as JSON, a coloured PLY and a picture of each; goes on where it stopped."""
    with one_line_errors():
        check_finite(threshold=threshold, intensity=intensity, full_intensity=full_intensity, ground=ground)
        from rich.console import Console

        from pointcloud.detection.detect import detect_files
        from pointcloud.detection.inputs import Inputs
        from pointcloud.detection.shipped import load_detector

        set_threads(threads)
        inputs = Inputs(intensity, full_intensity, ground, layout)
        find_device(device)  # a wrong name is said before a model is loaded
        detector = load_detector(model)
        detector = detector.to(find_device(device, detector.config.on_spconv))
        summary = detect_files(
            files, detector, output, model=model, threshold=threshold, inputs=inputs, pictures=pictures
        )
    if summary.detected:
        Console().print(summary)
    typer.echo(summary)
    typer.echo(f"wrote {output}")
    if summary.failed:
        raise typer.Exit(1)

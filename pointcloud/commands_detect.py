"""The command that finds objects in files of points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pointcloud.detection.detect import Summary
    from pointcloud.detection.detector import Detector

EMBEDDED = Path(__file__).parent / "embedded"


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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice")] = None,
) -> None:
    """Find objects in point clouds: boxes as JSON, a coloured PLY and a picture of each; goes on where it stopped."""
    try:
        import torch

        from pointcloud.detection.detect import detect_files

        if threads is not None:
            torch.set_num_threads(threads)
        detector = load_detector(model, device)
        classes = detector.config.head.classes
        options = {"model": model, "classes": classes, "threshold": threshold, "pictures": pictures}
        summary = detect_files(files, detector, output, **options)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    _print_summary(summary, output)
    if summary.failed:
        raise typer.Exit(1)


def find_device(name: str) -> str:
    """Return what a device's name stands for; ValueError if it is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here; accepted: auto, cpu, cuda or cuda:N") from error
    return name


def load_detector(model: str, device: str) -> Detector:
    """Return a model by its name or file, on a device; ValueError if there is no such model or device."""
    from pointcloud.detection.detector import Detector

    place = find_device(device)
    shipped = {file.stem: file for file in sorted(EMBEDDED.glob("*.safetensors"))}
    file = shipped.get(model, Path(model))
    if not file.is_file():
        raise ValueError(f"unknown model {model!r}; shipped: {', '.join(shipped) or 'none'}; or give a file's path")
    return Detector.load(file).to(place)


def _print_summary(summary: Summary, output: Path) -> None:
    from rich.console import Console

    console = Console()
    if summary.detected:
        console.print(_table(summary))
    found = ", ".join(f"{count} {name}" for name, count in sorted(summary.objects.items())) or "nothing"
    counts = f"{summary.detected} detected, {summary.skipped} done before, {len(summary.failed)} failed"
    typer.echo(f"{counts}; found: {found}")
    typer.echo(f"wrote {output}")


def _table(summary: Summary) -> Table:
    from rich.table import Table

    from pointcloud.detection.detect import STAGES

    table = Table("stage", "ms per scan", caption=f"{summary.scans_per_second:.1f} scans/s")
    for stage in STAGES:
        table.add_row(stage, f"{summary.milliseconds(stage):.1f}")
    table.add_row("all", f"{sum(map(summary.milliseconds, STAGES)):.1f}")
    return table

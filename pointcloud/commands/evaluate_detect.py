"""The command `evaluate detect`: a detector's average precision on scenes it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointcloud.commands.options import (
    Device,
    Spikes,
    Threads,
    check_finite,
    find_device,
    one_line_errors,
    set_threads,
)

if TYPE_CHECKING:
    from pointcloud.detection.detector import Detector


def evaluate_detect(
    model: Annotated[str, typer.Argument(help="name of a shipped model, or a .safetensors file")] = "dsvt-tiny",
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("evaluation"),
    scenes: Annotated[int, typer.Option(min=1, help="how many evaluation scenes")] = 200,
    iou: Annotated[float, typer.Option(min=0, max=1, help="overlap from above of a right detection")] = 0.5,
    spikes: Spikes = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the average precision of each class; write it as JSON with the precision-recall curves as PNG."""
    with one_line_errors():
        check_finite(iou=iou)
        from pointcloud.classes import check_classes
        from pointcloud.detection.evaluation import evaluate, write_results
        from pointcloud.detection.shipped import load_detector
        from pointcloud.scenes import DrivingScenes

        set_threads(threads)
        find_device(device)  # a wrong name is said before a model is loaded
        detector, data = load_detector(model), DrivingScenes("evaluation", scenes)
        detector = detector.to(find_device(device, detector.config.on_spconv))
        check_classes(detector.config.head.classes, data.classes, model)
        if spikes:
            _spike(detector, model)
        results = evaluate(detector, data, iou)
        for name, result in results.items():
            typer.echo(f"{name}: average precision {result.curve.average_precision:.3f} of {result.truths} boxes")
        for file in write_results(results, output, model=model, scenes=scenes, iou=iou, spikes=spikes):
            typer.echo(f"wrote {file}")


def _spike(detector: Detector, model: str) -> None:
    if not getattr(detector.config.backbone, "levels", 0):
        raise ValueError(f"{model} does not spike; leave --spikes out, or give a detector with a spiking backbone")
    from pointcloud.nn import unroll  # needs the extra `points`

    unroll(detector)

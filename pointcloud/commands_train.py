"""The commands `train detect` and `evaluate detect`: a detector on ray-cast driving scenes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands_detect import find_device, load_detector

train = typer.Typer(help="Train a network on scenes made on the fly.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure a network on scenes it was not trained on.", no_args_is_help=True)


@train.callback()
@evaluate.callback()
def _group() -> None:
    # With a callback, a group of one command is still called by the command's name.
    pass


@train.command("detect")
def train_detect(
    output: Annotated[Path, typer.Option(help="folder of checkpoint and weights; a run goes on where one stopped")],
    steps: Annotated[int, typer.Option(min=1, help="steps in all")] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="scenes a step")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0, help="at the peak of its one cycle")] = 3e-3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="compute in bfloat16: fast with AVX512_BF16")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes that make scenes")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice")] = None,
) -> None:
    """Train dsvt-tiny; its weights are written every 100 steps."""
    with _one_line_errors():
        from pointcloud.detection.training import train as run

        _set_threads(threads)
        place = find_device(device)
        run(output, steps, batch, learning_rate, bfloat16=bfloat16, workers=workers, device=place, report=_say)
        typer.echo(f"wrote {output / 'detector.safetensors'}")


@evaluate.command("detect")
def evaluate_detect(
    model: Annotated[str, typer.Argument(help="name of a shipped model, or a .safetensors file")] = "dsvt-tiny",
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("evaluation"),
    scenes: Annotated[int, typer.Option(min=1, help="how many evaluation scenes")] = 200,
    iou: Annotated[float, typer.Option(min=0, max=1, help="overlap from above of a right detection")] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice")] = None,
) -> None:
    """Print the average precision of each class; write it as JSON with the precision-recall curves as PNG."""
    with _one_line_errors():
        from pointcloud.detection.evaluation import evaluate as run
        from pointcloud.detection.evaluation import write_results
        from pointcloud.scenes import DrivingScenes

        _set_threads(threads)
        results = run(load_detector(model, device), DrivingScenes("evaluation", scenes), iou)
        for name, result in results.items():
            typer.echo(f"{name}: average precision {result.curve.average_precision:.3f} of {result.truths} boxes")
        for file in write_results(results, output, model=model, scenes=scenes, iou=iou):
            typer.echo(f"wrote {file}")


def _say(line: str) -> None:
    print(line, flush=True)


def _set_threads(count: int | None) -> None:
    import torch

    if count is not None:
        torch.set_num_threads(count)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn input that cannot be used, or a missing package, into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error

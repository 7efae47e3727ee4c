"""`accel train-router`: routers for a model, from a folder of videos with captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accel.commands import options
from accel.errors import InputError

if TYPE_CHECKING:
    from accel.workbench.loading import LoadedPipeline

BACKBONES = ("frozen", "joint")


def train_router(
    data: Annotated[Path, typer.Option(help="folder of videos NAME.mp4, their captions in NAME.txt")],
    output: Annotated[Path, typer.Option(help="folder of the routers, for --cache routers:path=FOLDER")],
    model: options.Model = None,
    steps: Annotated[int, typer.Option(min=1, help="training steps in all")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="videos a step")] = 1,
    rate: Annotated[float, typer.Option(help="share of the blocks that run, at the end of denoising")] = 0.6,
    low_rate: Annotated[float | None, typer.Option(help="the same at its start; default: the rate")] = None,
    width_rate: Annotated[
        float | None, typer.Option(help="mean width of the MLPs that run, with a joint backbone; default: whole")
    ] = None,
    backbone: Annotated[str, typer.Option(help="frozen, or joint: the transformer learns too")] = "frozen",
    learning_rate: Annotated[float, typer.Option(help="of the routers")] = 1e-3,
    backbone_rate: Annotated[float, typer.Option(help="learning rate of a joint backbone")] = 1e-5,
    weight: Annotated[float, typer.Option(help="weight of the rates beside the error")] = 1.0,
    distillation: Annotated[
        float, typer.Option(help="share of the model as it was in what is learnt; 0 learns from the videos alone")
    ] = 0.0,
    variant: Annotated[str, typer.Option(help="shared (small) or published (a large layer in each block)")] = "shared",
    rest: Annotated[str, typer.Option(help="what blocks do that do not run: skip, or reuse what they added")] = "skip",
    seed: Annotated[int, typer.Option(help="of weights, noise and the choice of videos")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in the output folder")] = False,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Train routers (E-DiT): which blocks a sample needs at a timestep and, with a joint backbone, how wide an MLP."""
    with options.one_line_errors():
        from accel.files import check_writable
        from accel.workbench.captioned_videos import find_videos
        from accel.workbench.loading import load_pipeline
        from accel.workbench.router_training import Recipe, train_routers

        if backbone not in BACKBONES:
            raise InputError(f"backbone is {backbone!r}; accepted: {', '.join(BACKBONES)}")
        tuned = backbone_rate if backbone == "joint" else 0.0
        recipe = Recipe(
            rate, low_rate, width_rate, weight, learning_rate, tuned,
            distillation=distillation, variant=variant, rest=rest, seed=seed,
        )  # fmt: skip
        options.set_threads(threads)
        find_videos(data)
        check_writable(output)
        loaded = load_pipeline(model, device, dtype)
        asked = {"frames": frames, "height": height, "width": width}
        with _Bar(steps) as bar:
            size = _size(loaded, asked)
            train_routers(loaded, data, output, recipe, steps, size, batch=batch, resume=resume, report=bar.report)
        options.print_written(sorted(output.iterdir()))


def _size(loaded: LoadedPipeline, asked: dict[str, int | None]) -> dict[str, int]:
    """Return frames, height and width: what was asked for, else what the model is made for."""
    return {
        name: loaded.defaults["num_frames" if name == "frames" else name] if value is None else value
        for name, value in asked.items()
    }


class _Bar:
    """A bar on stderr, and a line of figures whenever there are new ones."""

    def __init__(self, steps: int):
        from rich.console import Console
        from rich.progress import Progress

        self.progress = Progress(console=Console(stderr=True))
        self.task = self.progress.add_task("loading", total=steps)
        self.said = ""

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, step: int, message: str) -> None:
        """Show how far it is."""
        self.progress.update(self.task, completed=step, description=message)
        if message.startswith("step") and message != self.said:
            typer.echo(message)
            self.said = message

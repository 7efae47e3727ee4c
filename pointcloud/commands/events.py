"""The command that looks into recordings of event cameras, and simulates them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import check_seed, one_line_errors


def events(
    files: Annotated[list[Path] | None, typer.Argument(help="recordings, or folders of them")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of pictures and simulated recordings")] = None,
    simulate: Annotated[Path | None, typer.Option(help="a video, of which NAME.npz is written to the output")] = None,
    sort: Annotated[bool, typer.Option("--sort", help="take files whose times run backwards")] = False,
    seed: Annotated[int, typer.Option(help="of the simulated sensor")] = 0,
) -> None:
    """Say what is in recordings, draw each as PNG and GIF, going on where it stopped; or simulate one of a video."""
    with one_line_errors():
        check_seed(seed)
        from pointcloud.events.inspect import inspect_files

        if simulate is not None:
            if output is None:
                raise ValueError("--simulate writes a recording; say with --output to which folder")
            files = [*(files or []), _simulated(simulate, output, seed)]
        if not files:
            raise ValueError("give recordings, folders of them, or --simulate VIDEO")
        failed = inspect_files(files, output, sort, typer.echo, lambda line: typer.echo(line, err=True))
        if output is not None:
            typer.echo(f"wrote {output}")
    if failed:
        raise typer.Exit(1)


def _simulated(video: Path, output: Path, seed: int) -> Path:
    from pointcloud.events.files import write_events
    from pointcloud.events.simulate import simulate
    from pointcloud.events.video import open_video

    with open_video(video) as (frames, rate):
        found = simulate(frames, rate, seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{video.stem}.npz"
    write_events(target, found)
    return target

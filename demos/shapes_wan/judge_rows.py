"""Judge the videos that `accel bench --videos` kept, and say how many of what was asked for each way gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accel.errors import InputError
from accel.workbench.captioned_videos import read_video
from accel.workbench.cases import Case
from accel.workbench.kept_videos import KeptVideos
from accel.workbench.rows import SETTING, Rows
from demos.shapes_wan.judge import judge
from demos.shapes_wan.results import TARGETS
from demos.shapes_wan.scenes import parse_caption

Right = dict[str, int]  # "actors", and how many of them have the color, motion and shape that was asked for


def judge_rows(rows: list[dict[str, Any]], videos: KeptVideos) -> None:
    """Write to every row with videos what is right in its own (`right`) and in the dense one (`dense_right`)."""
    judged: dict[str, Right] = {}
    for row in track([row for row in rows if row.get("video")], "videos", console=Console(stderr=True)):
        for name, target in (("video", "right"), ("dense_video", "dense_right")):
            file = row[name]
            if file not in judged:
                judged[file] = _right(_frames(videos.find(file), row), row["prompt"])
            row[target] = judged[file]


def totals(rows: list[dict[str, Any]]) -> dict[str, Right]:
    """Return what is right for each case, added up; "dense" is the dense videos, one a prompt, seed and setting."""
    added: dict[str, Right] = {}
    made_of = "prompt", "seed", *SETTING
    dense = {tuple(row.get(name) for name in made_of): row["dense_right"] for row in rows if "dense_right" in row}
    judged = [("dense", right) for right in dense.values()]
    judged += [
        (str(Case(row["method"], row["density_asked"], row["dense_share"], row["cache"])), row["right"])
        for row in rows
        if "right" in row
    ]
    for way, right in judged:
        sums = added.setdefault(way, dict.fromkeys(right, 0))
        for name, count in right.items():
            sums[name] += count
    return added


def _frames(path: Path, row: dict[str, Any]) -> Float[np.ndarray, "t h w 3"]:
    video = read_video(path, row["frames"], row["height"], row["width"])
    return (video[0].permute(1, 2, 3, 0).numpy() + 1) / 2


def _right(frames: Float[np.ndarray, "t h w 3"], prompt: str) -> Right:
    verdicts = judge(frames, parse_caption(prompt))
    return {"actors": len(verdicts), **{name: sum(getattr(verdict, name) for verdict in verdicts) for name in TARGETS}}


def main(
    rows_file: Annotated[Path, typer.Argument(metavar="ROWS.json", help="rows of accel bench")],
    videos: Annotated[Path, typer.Argument(help="the folder that accel bench --videos wrote to")],
) -> None:
    """Judge the videos of a benchmark of shapes-wan, print how many are right, and write it to the rows."""
    try:
        rows = Rows(rows_file)
        if not any(row.get("video") for row in rows.rows):
            raise InputError(f"{rows_file} names no videos; make its rows with accel bench --videos FOLDER")
        judge_rows(rows.rows, KeptVideos(videos))
    except (InputError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    rows.save()
    table = Table("way", "actors", *TARGETS)
    for way, right in totals(rows.current({}, {})).items():
        table.add_row(way, *(str(right[name]) for name in ("actors", *TARGETS)))
    Console().print(table)
    typer.echo(f"wrote {rows_file}")


if __name__ == "__main__":
    typer.run(main)

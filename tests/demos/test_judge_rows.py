"""Videos of a benchmark judged afterwards: rendered scenes, some with what was asked for and some without."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from accel.workbench.generation import Generation
from accel.workbench.kept_videos import KeptVideos
from demos.shapes_wan.judge_rows import judge_rows, main, totals
from demos.shapes_wan.scenes import parse_caption, render

PROMPT = "a large red circle moves left"
SIZE = {"frames": 33, "height": 64, "width": 64}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Two rows on two prompts, the second of which shows a shape of another colour that moves elsewhere."""
    videos = KeptVideos(tmp_path / "videos")

    def kept(shown: str, prompt: str, way: str) -> str:
        frames = (render(parse_caption(shown), *SIZE.values(), random.Random(0)).permute(1, 2, 3, 0).numpy() + 1) / 2
        return videos.keep(Generation(frames, {}, []), prompt, 0, way)

    both = f"{PROMPT} and a large blue square stays still"
    shown = [(PROMPT, PROMPT), (both, both.replace("blue square stays still", "green square moves right"))]
    return [
        {
            "method": "svg-ear", "density_asked": 0.25, "dense_share": 0.1, "cache": "easy", "prompt": prompt, **SIZE,
            "video": kept(other, prompt, "easy"), "dense_video": kept(prompt, prompt, "dense"),
        }
        for prompt, other in shown
    ]  # fmt: skip


def test_what_is_right_is_counted(rows: list[dict[str, Any]], tmp_path: Path):
    judge_rows(rows, KeptVideos(tmp_path / "videos"))
    assert rows[0]["right"] == {"actors": 1, "color": 1, "motion": 1, "shape": 1}
    assert rows[1]["right"] == {"actors": 2, "color": 1, "motion": 1, "shape": 2}
    again = {
        **rows[0],
        "density_asked": 0.5,
        "dense_video": "elsewhere/dense-2.mp4",
    }
    assert totals([*rows, {**rows[1], "cache": "none"}, again]) == {
        "dense": {"actors": 3, "color": 3, "motion": 3, "shape": 3},
        "svg-ear at density 0.25, 0.1 dense with cache easy": {"actors": 3, "color": 2, "motion": 2, "shape": 3},
        "svg-ear at density 0.25, 0.1 dense": {"actors": 2, "color": 1, "motion": 1, "shape": 2},
        "svg-ear at density 0.5, 0.1 dense with cache easy": {"actors": 1, "color": 1, "motion": 1, "shape": 1},
    }


def test_command_writes_to_the_rows(rows: list[dict[str, Any]], tmp_path: Path):
    file = tmp_path / "rows.json"
    app = _app()
    file.write_text(json.dumps([{**rows[0], "video": None}]))
    result = CliRunner().invoke(app, [str(file), str(tmp_path / "videos")])
    assert result.exit_code == 2 and "names no videos; make its rows with accel bench --videos FOLDER" in result.stderr
    file.write_text(json.dumps([*rows, {**rows[0], "video": None, "cache": "older"}]))
    result = CliRunner().invoke(app, [str(file), str(tmp_path)])
    assert result.exit_code == 2 and "is not there; give the folder" in result.stderr
    result = CliRunner().invoke(app, [str(file), str(tmp_path / "videos")])
    assert result.exit_code == 0, result.output
    assert [row.get("right", {}).get("color") for row in json.loads(file.read_text())] == [1, 1, None]


def _app() -> Any:
    app = typer.Typer()
    app.command()(main)
    return app

"""Rows of benchmarks: the machine's name without accel, safe JSON, and what is said of a library that is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import points
from benchmarks.kmeans import make_rows, ours, plain_torch
from benchmarks.rows import installed, origin, show, write_rows
from benchmarks.timing import median_seconds, seconds_each


def test_rows_need_nothing_of_accel() -> None:
    heavy = ("accel", "diffusers", "matplotlib", "PIL")
    code = f"import sys, benchmarks.rows; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_origin_names_the_processor() -> None:
    row = origin("cpu")
    assert row["device"] and row["torch"] == torch.__version__ and row["threads"] >= 1 and len(row["date"]) == 10


def test_rows_are_shown_and_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    rows = [{"name": "a", "ms": 1.23456}, {"name": "b", "ms": float("inf"), "note": None}]
    show(rows, ("name", "ms", "note"), file)
    assert "1.23" in (text := capsys.readouterr().out) and "-" in text
    assert json.loads(file.read_text()) == [rows[0], {"name": "b", "ms": "inf", "note": None}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    with pytest.raises(TypeError):
        write_rows(file, [{"name": object()}])
    assert json.loads(file.read_text())[0] == rows[0], "a row that cannot be written leaves the old file"


def test_a_library_that_is_not_there_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert not installed("Magic", "no_such_module_of_ours")
    assert capsys.readouterr().err.count('pip install -e ".[bench]"') == 1
    assert installed("torch", "torch")


def test_times_are_medians_after_a_warm_up() -> None:
    calls: list[int] = []
    assert median_seconds(lambda: calls.append(0), "cpu", 3) >= 0 and len(calls) == 4
    assert len(seconds_each([lambda: None] * 5, "cpu")) == 5


def test_plain_torch_clusters_as_we_do() -> None:
    x, start = make_rows(2, 300, 8, 7, "cpu")
    assert (plain_torch(x, start, 4) - ours(x, start, 4)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["cube", "clusters", "sphere"])
def test_plain_searches_find_what_ours_do(kind: str) -> None:
    cloud = points.make_cloud(kind, 300, "cpu")
    offsets = points.whole(cloud)
    picks = points.farthest_point_sampling(cloud, offsets, 40)
    assert torch.equal(picks[0], points.plain_sampling(cloud, 40))
    near = points.k_nearest_neighbors(cloud, offsets, cloud, offsets, 5)
    assert points._same(near, points.plain_neighbors(cloud, cloud, 5)) > 0.99  # products round otherwise


def test_help_starts_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "quick form" in done.stdout and "speedup" not in done.stdout

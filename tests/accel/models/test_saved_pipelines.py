"""`accel bench --model` on saved pipelines of other families than Wan; by hand with every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accel.cli import app
from tests.accel.models.saved_pipelines import hunyuan_video, ltx_2

METHODS = "sparse-vdit", "svg-ear"


@pytest.mark.slow
@pytest.mark.parametrize(("save", "size"), [(hunyuan_video, "64"), (ltx_2, "128")])
def test_bench_of_a_saved_pipeline(save: Callable[[Path], None], size: str, tmp_path: Path) -> None:
    save(tmp_path / "model")
    rows = tmp_path / "rows.json"
    done = CliRunner().invoke(app, [
        "bench", "ab", "--model", str(tmp_path / "model"), "--methods", ",".join(METHODS), "--densities", "0.5",
        "--dense-steps", "0.5", "--seeds", "1", "--steps", "2", "--frames", "9", "--height", size, "--width", "192",
        "--dtype", "float32", "--json", str(rows),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["method"]: row for row in json.loads(rows.read_text())}
    assert found.keys() == set(METHODS) and all(row["psnr_db"] > 20 for row in found.values())

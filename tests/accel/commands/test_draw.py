"""Drawing of static patterns and of what a real generation planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from accel.cli import app
from tests.tiny_wan import save_tiny

DEFAULTS = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("draw") / "tiny", **DEFAULTS))


@pytest.mark.parametrize(("method", "patterns"), [("re-ttention", 1), ("sparse-vdit:block=16", 3)])
def test_static_patterns(method: str, patterns: int, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    result = CliRunner().invoke(app, ["draw", method, "--grid", "4,8,8", "--output", str(picture)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("density") == patterns and "█" in result.stdout
    with Image.open(picture) as image:
        assert image.height > 400  # blocks and pairs


@pytest.mark.parametrize("method", ["adaspa:block=16", "svg-ear", "xattention:block=16"])
def test_what_a_generation_plans(method: str, model: str, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    options = ["--prompt", "a red circle", "--model", model, "--layer", "1", "--head", "1", "--output", str(picture)]
    result = CliRunner().invoke(app, ["draw", method, *options])
    assert result.exit_code == 0, result.output
    assert "step 2, layer 1, head 1, density 0." in result.stdout and picture.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adaspa"], "the blocks of adaspa follow queries and keys; give --prompt"),
        (["magic"], "unknown method 'magic'"),
        (["re-ttention", "--grid", "4,8"], "grid is '4,8'; give three numbers"),
        (
            ["adaspa", "--prompt", "a red circle", "--step", "0"],
            "adaspa, step 0, layer 0, head 0 is not sparse (computed)",
        ),
        (["svg-ear", "--prompt", "a red circle", "--step", "9"], "no call of step 9, layer 0; there are 4 and 2"),
        (["svg-ear", "--prompt", "a red circle", "--head", "7"], "head is 7; there are 2, from 0"),
    ],
)
def test_bad_input(arguments: list[str], message: str, model: str) -> None:
    result = CliRunner().invoke(app, ["draw", *arguments, "--model", model])
    assert result.exit_code == 2 and f"error: {message}" in result.stderr

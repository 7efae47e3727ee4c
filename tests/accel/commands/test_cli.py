"""The command line: written files and table, and one line with exit code 2 for every bad input."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from diffusers import WanTransformer3DModel
from typer.testing import CliRunner

from accel.caching.registry import POLICIES
from accel.cli import app
from accel.commands import bench
from accel.methods.registry import METHODS
from accel.workbench import loading
from tests.tiny_wan import save_tiny

PROMPT = "a red circle moves left"
DEFAULTS = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real WanPipeline folder with random weights and small defaults."""
    return str(save_tiny(tmp_path_factory.mktemp("cli") / "tiny", **DEFAULTS))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", PROMPT, *arguments])


def assert_refused(result: Result, message: str, output: Path) -> None:
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and result.stderr.endswith(lines[0] + "\n")
    assert "Traceback" not in result.output
    assert not output.exists()


def test_comparison_prints_a_table_and_writes_files(model: str, tmp_path: Path):
    result = run("--model", model, "--compare", "--density", "0.5", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for label in ("speed-up", "attention speed-up", "density", "recall", "PSNR", "SSIM", "dense steps"):
        assert label in result.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"dense.mp4", "sparse.mp4", "side_by_side.mp4", "report.json", "report.png"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["method_options"]["density"] == 0.5 and report["prompt"] == PROMPT
    assert all(str(tmp_path / "out" / name) in result.stdout.replace("\n", "") for name in names)


@pytest.mark.parametrize("method", ["dense", "adaspa"])
def test_a_cache_alone_or_with_a_method(model: str, tmp_path: Path, method: str):
    output, cache = tmp_path / "out", "table:warmup=1"
    arguments = ["--model", model, "--method", method, "--cache", cache, "--steps", "4", "--output", str(output)]
    result = run(*arguments, "--compare")
    assert result.exit_code == 0, result.output
    report = json.loads((output / "report.json").read_text())
    assert report["cache"] == "table" and report["cache_options"]["warmup"] == 1 and report["blocks_reused"] == 0.5
    assert "blocks computed" in result.stdout and "PSNR" in result.stdout
    assert run(*arguments).exit_code == 0 and (output / "video.mp4").is_file()


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("magic", "unknown cache 'magic'; accepted: easy, dual-block, prune, table"),
        ("easy:threshold", "'threshold' in 'easy:threshold' is no option"),
        ("dual-block:first=8", "first 8 and last 0 blocks always run, and the model has 2"),
        ("table:table=nowhere.json", "'nowhere.json' is no table of blocks"),
    ],
)
def test_bad_caches(model: str, tmp_path: Path, cache: str, message: str):
    output = tmp_path / "out"
    assert_refused(run("--model", model, "--cache", cache, "--output", str(output)), message, output)


@pytest.mark.parametrize("method", ["svg-ear", "sparse-vdit", "dense"])
def test_generation_writes_one_video(model: str, tmp_path: Path, method: str):
    result = run("--model", model, "--method", method, "--steps", "2", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"video.mp4", "report.json"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == method and report["steps"] == 2 and report["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "unknown method 'magic'; accepted: preset, dense, sparse-vdit, adaspa"),
        (["--density", "1.5"], "density must be above 0 and at most 1, got 1.5"),
        (["--dense-steps", "-1"], "dense_steps must lie between 0 and 1, got -1.0"),
        (["--method", "dense", "--compare"], "method dense has nothing to compare"),
        (["--model", "/no/such/folder"], "model folder '/no/such/folder' does not exist"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--dtype", "int4"], "unknown dtype 'int4'"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--frames", "6"], "frames is 6; this model makes 4n + 1: nearest is 5 or 9"),
        (["--height", "40"], "height is 40; this model makes multiples of 16: nearest is 32 or 48"),
        (["--width", "-16"], "width is -16; this model makes multiples of 16: nearest is 16"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_input_is_one_line(model: str, tmp_path: Path, arguments: list[str], message: str):
    output = tmp_path / "out"
    given = arguments if "--model" in arguments else ["--model", model, *arguments]
    assert_refused(run(*given, "--output", str(output)), message, output)


def test_model_that_is_no_video_pipeline(tmp_path: Path):
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "unet": ["diffusers", "UNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    output = tmp_path / "out"
    assert_refused(run("--model", str(tmp_path), "--output", str(output)), "has no video transformer", output)


def test_weights_that_are_nan(model: str, tmp_path: Path):
    shutil.copytree(model, tmp_path / "model")
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "model" / "transformer")
    with torch.no_grad():
        transformer.patch_embedding.weight.fill_(torch.nan)
    transformer.save_pretrained(tmp_path / "model" / "transformer")
    output = tmp_path / "out"
    message = "transformer weight patch_embedding.weight holds NaN or Inf"
    assert_refused(run("--model", str(tmp_path / "model"), "--output", str(output)), message, output)


def test_unwritable_output_is_found_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "load_pipeline", pytest.fail)
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out"
    assert_refused(run("--output", str(output)), "cannot be written", output)


def test_absent_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "embedded_folder", lambda: tmp_path)
    assert_refused(run("--output", str(tmp_path / "out")), "is not in this installation", tmp_path / "out")


def test_info_names_backends_versions_and_model():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    for word in ("device", "torch", torch.__version__, "backend reference on cpu", "CPU kernel", "embedded model"):
        assert word in result.stdout


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"visual-accel {importlib.metadata.version('visual-accel')}\n"


def test_methods_and_caches_are_listed_with_their_options():
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0, result.output
    for name, kind in {**METHODS, **POLICIES}.items():
        assert any(line.split(": ")[0].split(" (")[0].endswith(f" {name}") for line in result.stdout.splitlines())
        assert all(f"{field.name}=" in result.stdout for field in dataclasses.fields(kind) if field.repr)
    assert "diffusers.FirstBlockCache" in result.stdout and "MISSING" not in result.stdout


@pytest.mark.filterwarnings("always")
def test_unknown_words_are_named_once_and_without_a_place_in_our_code(model: str, tmp_path: Path):
    arguments = ["generate", "a pink cat", "--model", model, "--compare", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "pink" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: the model does not know the words pink, cat")
    assert ".py" not in result.stderr


def test_names_are_printed_as_they_are(model: str, tmp_path: Path):
    folder = tmp_path / ":warning: [red]"
    shutil.copytree(model, folder)
    result = run(
        "--model", str(folder), "--method", "svg-ear", "--compare", "--output", str(tmp_path / ":warning: out")
    )
    assert result.exit_code == 0, result.output
    printed = "".join(line.strip("│ \n") for line in result.stdout.splitlines())
    assert ":warning: [red]" in printed and ":warning: out" in printed


def test_commas_of_a_tuple_separate_no_names():
    assert bench._names("adaspa:tile=(4,8,8), svg-ear,prune:kept=(1,2)") == [
        "adaspa:tile=(4,8,8)",
        "svg-ear",
        "prune:kept=(1,2)",
    ]


def test_no_head_of_a_benchmark_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {name: 0.123456 for name in bench.COLUMNS} | {"density_asked": 0.3, "dense_share": 0.2}
    bench._print([row | {"method": "re-ttention:base=adaspa", "cache": "dual-block:threshold=0.1"}])
    printed = capsys.readouterr().out
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80
    columns = [line.ljust(80) for line in printed.splitlines()]
    assert "".join("".join(columns).split()).count("0.123") == len(bench.COLUMNS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from accel.cli import app; "
        "result = CliRunner().invoke(app, ['generate', '--help']); assert result.exit_code == 0; "
        "print(sorted({'torch', 'diffusers', 'matplotlib', 'imageio'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"

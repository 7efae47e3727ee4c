"""The commands on clouds: files, folders that hold broken files, models of another kind, training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

pytest.importorskip("spconv.pytorch", exc_type=ImportError)
pytest.importorskip("open3d", exc_type=ImportError)

from pointcloud.classes import check_classes
from pointcloud.classification import config as configs
from pointcloud.classification.shipped import load_model
from pointcloud.cli import app
from pointcloud.files import read_points, write_points
from pointcloud.shapes import PARTS, SHAPES, make_segments, make_shape
from tests.pointcloud.classification.tiny_models import tiny_config, tiny_model


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def folder_of(tmp_path: Path) -> Path:
    clouds = tmp_path / "clouds"
    (clouds / "below").mkdir(parents=True)
    write_points(clouds / "a.ply", make_shape(1).cloud)
    (clouds / "b.bin").write_bytes(b"cut short")
    write_points(clouds / "below" / "c.npy", make_segments(2).cloud)
    return clouds


@pytest.mark.parametrize(
    ("command", "task", "classes"), [("classify", "shapes", SHAPES), ("segment", "segments", PARTS)]
)
def test_folders_get_records_points_and_pictures_and_go_on(
    command: str, task: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    clouds, output, model = folder_of(tmp_path), tmp_path / "out", tmp_path / "model.safetensors"
    tiny_model(task).save(model)
    result = invoke(command, clouds, "--model", model, "--output", output)
    assert result.exit_code == 1 and "2 done, 0 done before, 1 failed" in result.stdout, result.output
    assert result.stderr.splitlines() == [line for line in result.stderr.splitlines() if "b.bin" in line] != []
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    whole = {stem + suffix for stem in ("a", "below/c") for suffix in (".json", ".ply", ".png")}
    assert names == {*whole, "summary.json"}
    record, painted = json.loads((output / "a.json").read_text()), read_points(output / "a.ply")
    labels = painted.attributes["label"]
    assert record["points"] == len(painted) == len(labels) and "color" in painted.attributes
    assert {classes[label] for label in labels.tolist()} == set(record["found"])
    if task == "shapes":
        assert record["class"] == max(record["scores"], key=record["scores"].get) == record["found"][0]
    else:
        assert sum(record["points_per_class"].values()) == len(painted)
    again = invoke(command, clouds, "--model", model, "--output", output)
    assert again.exit_code == 1 and "0 done, 2 done before, 1 failed" in again.stdout
    assert json.loads((output / "summary.json").read_text())["skipped"] == 2


def test_scans_of_another_layout(tmp_path: Path) -> None:
    random, file, model = np.random.default_rng(0), tmp_path / "a.bin", tmp_path / "model.safetensors"
    rows = np.concatenate([random.normal(0, 10, (400, 3)), random.integers(0, 255, (400, 2))], 1)
    rows.astype("<f4").tofile(file)
    tiny_model("shapes").save(model)
    options = (file, "--model", model, "--output", tmp_path / "out", "--no-pictures")
    refused = invoke("classify", *options)
    assert refused.exit_code == 1 and "may be those of nuscenes: say which by --layout" in refused.stderr
    result = invoke("classify", *options, "--layout", "nuscenes")
    assert result.exit_code == 0 and json.loads((tmp_path / "out" / "a.json").read_text())["points"] == 400
    unknown = invoke("classify", *options, "--layout", "other")
    assert (
        unknown.exit_code == 2 and unknown.stderr == "error: unknown layout 'other'; accepted: kitti, nuscenes, waymo\n"
    )


def test_models_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    write_points(tmp_path / "a.npy", make_shape(1).cloud)
    tiny_model("segments").save(tmp_path / "segments.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    cases = {
        "nothing": "unknown model 'nothing'; shipped: ",
        "segments.safetensors": "is a model of segments; give one of shapes, as shapes-tiny",
        "broken.safetensors": "no safetensors file",
    }
    for model, message in cases.items():
        name = tmp_path / model if model.endswith("safetensors") else model
        result = invoke("classify", tmp_path / "a.npy", "--model", name, "--output", tmp_path / "out")
        assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    result = invoke("segment", tmp_path, "--model", tmp_path / "segments.safetensors", "--output", tmp_path)
    assert result.exit_code == 2 and "holds the points to read" in result.stderr
    assert not (tmp_path / "out").exists()


def test_evaluation_refuses_a_model_of_other_classes(tmp_path: Path) -> None:
    model = tiny_model("shapes")
    model.config = configs.ModelConfig(tuple("abcdefghij"), model.config.network)
    model.save(tmp_path / "letters.safetensors")
    result = invoke("evaluate", "shapes", tmp_path / "letters.safetensors", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "has the classes a, b, c" in result.stderr and not (tmp_path / "out").exists()
    check_classes(tiny_model("shapes").config.classes, SHAPES, "tiny")


@pytest.mark.parametrize("task", ["shapes", "segments"])
def test_training_and_evaluation_by_command(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, f"{task.upper()}_TINY", tiny_config(task))
    run = ("train", task, "--output", tmp_path / "run", "--batch", 2, "--workers", 0)
    for steps, relu in ((1, ()), (2, ())):
        result = invoke(*run, "--steps", steps, *relu)
        assert result.exit_code == 0, result.output
    refused = invoke(*run, "--steps", 3, "--relu")
    assert refused.exit_code == 2 and "give another output folder" in refused.stderr
    model = tmp_path / "run" / "model.safetensors"
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["step"] == 2 and load_model(str(model), task)  # type: ignore
    for spikes in ((), ("--spikes",)):
        result = invoke("evaluate", task, model, "--clouds", 3, "--output", tmp_path / "found", *spikes)
        assert result.exit_code == 0 and "mean overlap" in result.stdout, result.output
        results = json.loads((tmp_path / "found" / "results.json").read_text())
        assert results["clouds"] == 3 and results["spikes"] is bool(spikes)

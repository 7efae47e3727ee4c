"""What commands check alike: devices, numbers, seeds; and errors, which are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from torch._utils import ExceptionWrapper
from typer.testing import CliRunner

from pointcloud.cli import app
from pointcloud.commands import environment
from pointcloud.commands.options import find_device, one_line_errors


@pytest.mark.parametrize(
    ("wheel", "on_spconv", "place"),
    [("CPU-only", True, "cpu"), ("not installed", True, "cpu"), ("CUDA", True, "cuda"), ("CPU-only", False, "cuda")],
)
def test_auto_is_the_cpu_where_spconv_has_no_cuda_kernels(
    monkeypatch: pytest.MonkeyPatch, wheel: str, on_spconv: bool, place: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "spconv_wheel", lambda: wheel)
    assert find_device("auto", on_spconv) == place


def test_cuda_that_spconv_cannot_run_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)  # as if it were here
    monkeypatch.setattr(environment, "spconv_wheel", lambda: "CPU-only")
    assert find_device("cuda:1") == "cuda:1" and find_device("cpu", True) == "cpu"
    said = (
        r"spconv does not run on cuda:1 here \(its wheel: CPU-only\); give --device cpu, or pip uninstall spconv cumm"
    )
    with pytest.raises(ValueError, match=said):
        find_device("cuda:1", True)


@pytest.mark.parametrize(
    ("module", "words", "on_spconv"),
    [
        ("predict", ["classify", "a.npy"], True),
        ("predict", ["segment", "a.npy"], True),
        ("detect", ["detect", "a.npy"], False),
        ("detect", ["detect", "a.npy", "--model", "e3dsnn-tiny"], True),
        ("evaluate_detect", ["evaluate", "detect", "e3dsnn-tiny"], True),
        ("evaluate_clouds", ["evaluate", "shapes"], True),
        ("train_clouds", ["train", "segments", "--output", "out"], True),
        ("train_detect", ["train", "detect", "--output", "out"], False),
        ("train_detect", ["train", "detect", "--output", "out", "--model", "e3dsnn-tiny"], True),
    ],
)
def test_commands_say_whether_they_need_spconv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, words: list[str], on_spconv: bool
) -> None:
    pytest.importorskip("spconv.pytorch", exc_type=ImportError)

    def told(name: str, on_spconv: bool | None = None) -> str:
        if on_spconv is None:
            return name
        raise ValueError(f"on spconv: {on_spconv}")

    monkeypatch.setattr(f"pointcloud.commands.{module}.find_device", told)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, words).stderr == f"error: on spconv: {on_spconv}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["detect", "a.npy", "--full-intensity", "inf"], "--full-intensity is inf"),
        (["detect", "a.npy", "--ground", "nan"], "--ground is nan"),
        (["detect", "a.npy", "--device", "meta"], "device 'meta' is not here; accepted: auto, cpu, cuda or cuda:N"),
        (["train", "detect", "--output", "out", "--learning-rate", "inf"], "--learning-rate is inf"),
        (["train", "events", "--output", "out", "--seed", "99999999999999"], "--seed is 99999999999999; give a whole"),
        (["evaluate", "events", "--seed", "4294967296"], "give a whole number from 0 to 4294967295"),
        (["events", "--simulate", "a.gif", "--output", "out", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_numbers_that_none_can_be_are_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and said in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["detect", "a.npy", "--threshold", "nan"],
        ["detect", "a.npy", "--intensity", "nan"],
        ["evaluate", "detect", "--iou", "nan"],
        ["train", "shapes", "--output", "out", "--learning-rate", "nan"],
        ["train", "events", "--output", "out", "--learning-rate", "nan"],
    ],
)
def test_what_is_no_number_lies_in_no_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and words[-2] in result.stderr
    assert list(tmp_path.iterdir()) == []


def in_a_worker(error: Exception) -> Exception:
    """Return what a DataLoader raises where one of its workers has failed."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except Exception as raised:
        return raised
    raise AssertionError("it was not raised")


MISSING = 'this needs spconv: pip install "visual-accel[points]" (wheels for Linux on x86-64, Python 3.11 to 3.13)'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("scene 3 is broken: take another"), "scene 3 is broken: take another"),
        (in_a_worker(ValueError("scene 3 is broken: take another")), "scene 3 is broken: take another"),
        (in_a_worker(ImportError("it needs open3d: pip install open3d")), "it needs open3d: pip install open3d"),
        (ImportError("it needs\n\nlibusb"), "it needs libusb"),
        (OSError(), "OSError"),
        (ModuleNotFoundError("No module named 'spconv'", name="spconv"), MISSING),
        (ModuleNotFoundError("No module named 'spconv.pytorch'", name="spconv.pytorch"), MISSING),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), "No module named 'rich'"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], error: Exception, said: str) -> None:
    with pytest.raises(typer.Exit), one_line_errors():
        raise error
    assert capsys.readouterr().err == f"error: {said}\n"

"""What `pointcloud info` says of this machine and of others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import pytest
import torch
from typer.testing import CliRunner

from pointcloud.cli import app
from pointcloud.commands import environment
from sparse_kernels.sparse_conv import cpu


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"visual-accel {importlib.metadata.version('visual-accel')}\n"


def test_the_command_prints_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.pytorch")
    rows = environment.environment()
    assert ("torch", torch.__version__) in rows and "spconv" in " ".join(what for what, _ in rows)
    rows.append(("brackets", "[points]"))  # rich would take them for a style
    monkeypatch.setattr(environment, "environment", lambda: rows)
    result = CliRunner().invoke(app, ["info"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert all(what in result.stdout and here in result.stdout for what, here in rows)


@pytest.mark.parametrize(
    ("wheel", "said"),
    [
        ("CUDA", "spconv's own kernels"),
        ("CPU-only", "none: pip uninstall spconv cumm, then pip install spconv-cu126"),
        ("not installed", "none: pip uninstall spconv cumm, then pip install spconv-cu126"),
    ],
)
def test_a_cuda_device_without_its_wheel_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, wheel: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "spconv_wheel", lambda: wheel)
    assert dict(environment.environment())["sparse convolution on cuda"] == said


def test_the_cpu_without_a_compiler_or_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "can_run", lambda x: "no C++ compiler was found")
    assert environment.cpu_convolution("CPU-only") == "slow reference: no C++ compiler was found"
    missing = 'none: pip install "visual-accel[points]" (wheels for Linux on x86-64, Python 3.11 to 3.13)'
    assert environment.cpu_convolution("not installed") == missing
    assert "pip install spconv" in environment.cpu_convolution("cannot be imported: libcumm")


def test_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.pytorch")
    from spconv import cppconstants

    assert environment.spconv_wheel() == ("CPU-only" if cppconstants.CPU_ONLY_BUILD else "CUDA")
    monkeypatch.setitem(sys.modules, "spconv.cppconstants", None)
    assert environment.spconv_wheel().startswith("cannot be imported: ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert environment.spconv_wheel() == "not installed"

"""The command for a GPU: parts and cases that fail alone, a time that is kept, and a smoke test of all of it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

from benchmarks import gpu, gpu_tests
from benchmarks.cases import DEVICE_LOST, UNFINISHED, Cases
from benchmarks.gpu import Part, condensed, run_parts, table_row

PART = """
import os, sys, time
from pathlib import Path
from benchmarks.cases import DEVICE_LOST, Cases

def hang():
    time.sleep(600)

def fail():
    raise RuntimeError("out of luck\\nand more")

RUNS = {"good": lambda: {"ms_ours": 1.0}, "crash": lambda: os.abort(), "hang": hang, "fail": fail,
        "lost": lambda: sys.exit(DEVICE_LOST)}
file, seconds = (sys.argv[sys.argv.index(name) + 1] for name in ("--json", "--seconds"))
cases = Cases(Path(file), "cpu", float(seconds))
for name in sys.argv[1].split(","):
    cases.run(name, RUNS[name])
if "exit" in sys.argv:
    raise ImportError("no such module")
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose cases do what their names say."""
    (tmp_path / "a_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_part"


def rows(out: Path, name: str) -> dict[str, dict]:
    return {row["case"]: row for row in json.loads((out / f"{name}.json").read_text())}


@pytest.mark.slow
def test_parts_and_cases_fail_alone(tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (
        Part("first", part, 4, ("good,crash,fail,lost",)),
        Part("second", part, 0.65, ("hang,good",)),
        Part("third", part, 2, ("good", "exit")),
        Part("last", part, 2, ("good",)),
    )
    start = time.monotonic()
    lines = run_parts(parts, tmp_path, minutes=0.9, smoke=True)
    assert time.monotonic() - start < 60
    first = rows(tmp_path, "first")
    assert first["good"]["ms_ours"] == 1.0 and first["crash"]["error"] == first["lost"]["error"] == UNFINISHED
    assert first["fail"]["error"] == "RuntimeError: out of luck"
    second = rows(tmp_path, "second")
    assert second["hang"]["error"] == UNFINISHED and "stopped after" in second["the process"]["error"]
    third = rows(tmp_path, "third")
    assert third["good"]["ms_ours"] == 1.0 and "ImportError: no such module" in third["the process"]["output"]
    assert list(rows(tmp_path, "last")) == ["good"]
    assert "first: done, 4 rows, 3 failed" in (said := capsys.readouterr().out) and "last: done, 1 rows, 0" in said
    assert [line["part"] for line in lines if not line["failed"]] == ["first", "third", "last"]


def test_no_time_is_said(tmp_path: Path, part: str) -> None:
    lines = run_parts((Part("only", part, 1, ("good",)),), tmp_path, minutes=0.05, smoke=True)
    assert [line["note"] for line in lines] == ["no time was left"] and not lines[0]["failed"]
    cases = Cases(tmp_path / "cases.json", "cpu", seconds=0.0)
    cases.run("late", lambda: {"ms_ours": 1.0})
    assert cases.rows == [{"case": "late", "skipped": "no time was left"}]


def test_a_second_run_adds_what_is_missing(tmp_path: Path) -> None:
    file, calls = tmp_path / "cases.json", []
    for _ in range(2):
        cases = Cases(file, "cpu", seconds=60.0)
        cases.run("two", lambda: [calls.append(0) or {"x": 1}, {"x": 2}])
    assert len(calls) == 1 and [(row["case"], row["x"]) for row in json.loads(file.read_text())] == [
        ("two", 1),
        ("two", 2),
    ]


def test_rows_of_another_setting_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    Cases(file, "cpu", seconds=60.0, setting={"steps": 6}).run("one", lambda: {"x": 1})
    assert json.loads(file.read_text())[0]["steps"] == 6
    with pytest.raises(SystemExit, match="cases.json has rows with steps 6, not 12: give another --json"):
        Cases(file, "cpu", seconds=60.0, setting={"steps": 12})


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    cases = Cases(None, "cuda", seconds=60.0)
    with pytest.raises(SystemExit) as ended:
        cases.run("wild", lost)
    assert ended.value.code == DEVICE_LOST and "illegal memory access" in cases.rows[0]["error"]


def test_the_table_shows_the_worst_and_every_failure() -> None:
    made = [
        {"case": "attention, bfloat16, small", "rel_error": 0.001, "ok": True},
        {"case": "attention, bfloat16, large", "rel_error": 0.002, "ok": True},
        {"case": "attention, bfloat16, odd", "rel_error": 0.5, "ok": False},
        {"case": "attention, float16, small", "rel_error": 0.003, "ok": True},
        {"case": "times", "ms_dense": 2.0, "ms_ours": 1.0, "speedup": 2.0, "max_error": 0.1},
        {"case": "times", "ms_dense": 3.0, "ms_ours": 1.0, "speedup": 3.0, "max_error": 0.1},
    ]
    lines = condensed([table_row("parity", row) for row in made])
    assert [line["error"] for line in lines] == [0.002, 0.5, 0.003, 0.1, 0.1]
    assert lines[1]["note"] == "WRONG" and lines[1]["failed"] and lines[3]["ms_other"] == 2.0


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.BadParameter, match="unknown part magic; accepted: parity, attention"):
        gpu.main(tmp_path, only="demo,magic")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="no CUDA device; try it on the CPU with --smoke"):
        gpu.main(tmp_path)


def test_failed_tests_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_good(): pass\n"
        "@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.gpu\ndef test_left(): pytest.skip('no')\n"
        "def test_other(): assert False\n"
    )
    assert gpu_tests.run_tests([file], tmp_path / "report.xml") == 1
    counts, failed = gpu_tests.rows_of(tmp_path / "report.xml")
    assert counts["case"] == "1 passed, 1 failed, 1 skipped" and not counts["ok"]
    assert failed["case"].endswith("test_bad") and "assert 1 == 2" in failed["error"]
    assert gpu_tests.gpu_files() and all(file.name.startswith("test_triton") for file in gpu_tests.gpu_files())


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    """The command itself, with the part that needs Triton's interpreter; the numbers are right."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--smoke", "--only", "parity"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    assert "0 failed; whole rows in" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"parity.json", "log.txt"}
    parity = rows(tmp_path, "parity")
    assert len(parity) == 15 and all(row["ok"] for row in parity.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "transformers", "demo", "kernels"])
def test_smoke_of_a_part(name: str, tmp_path: Path) -> None:
    """The other parts run on the CPU, in this process for their time; tests of a GPU would be skipped."""
    part = next(part for part in gpu.PARTS if part.name == name)
    module = importlib.import_module(part.module)
    module.main(*([list(part.arguments)] if part.arguments else []), json_file=tmp_path / "part.json", smoke=True)
    made = rows(tmp_path, "part")
    assert made and not any("error" in row or row.get("ok") is False for row in made.values()), made
    if name == "transformers":
        assert made["tiny, 320 tokens, full"]["difference"] < 1e-5

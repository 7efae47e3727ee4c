"""Detection in many files: outputs, names, bad files, and going on after a kill; the command line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pointcloud.boxes import Detections
from pointcloud.cli import app
from pointcloud.detection import shipped
from pointcloud.detection.detect import detect_files
from pointcloud.detection.detector import Detector
from pointcloud.detection.detector_config import DSVT_TINY
from pointcloud.detection.inputs import Inputs
from pointcloud.detection.pictures import COLORS
from pointcloud.detection.scans import find_scans
from pointcloud.detection.summary import Summary
from pointcloud.files import read_points, write_points
from pointcloud.points import PointCloud

CLASSES = ("vehicle", "pedestrian", "cyclist")
OUTPUTS = (".json", ".ply", ".png")


class FakeDetector(Detector):
    """Finds one vehicle where the points are; remembers how many earlier clouds were still alive at each call."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = DSVT_TINY
        self.clouds: list[weakref.ref[PointCloud]] = []
        self.alive: list[int] = []
        self.peaks: list[int] = []

    def detect(self, cloud: PointCloud, threshold: float | None = None) -> Detections:
        if len(cloud) == 1:
            raise ValueError("no point lies in the grid")
        self.alive.append(sum(known() is not None for known in self.clouds[-20:]))
        self.clouds.append(weakref.ref(cloud))
        self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        low, high = cloud.xyz.amin(0), cloud.xyz.amax(0)
        box = torch.cat([(low + high) / 2, 2 * (high - low), torch.zeros(1)])[None]
        return Detections(box, torch.tensor([0.875]), torch.tensor([0]))


def points(seed: int = 0, count: int = 50) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    return PointCloud(torch.rand(count, 3, generator=generator), {"intensity": torch.rand(count, generator=generator)})


def write_las(path: Path) -> None:
    las: Any = laspy.create(point_format=3, file_version="1.2")
    las.header.offsets, las.header.scales = [500_000, 4_000_000, 0], [0.001] * 3
    las.x, las.y, las.z = (np.linspace(start, start + 5, 20) for start in (500_100, 4_000_200, 3))
    las.write(str(path))


def run(paths: list[Path], output: Path, **options: Any) -> Summary:
    detector = options.pop("detector", None) or FakeDetector()
    return detect_files(paths, detector, output, **{"model": "fake", "pictures": False, **options})


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_file_gets_record_points_and_picture(tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    write_points(scans / "kitti.bin", points())
    write_points(scans / "mesh.ply", points(1))
    write_las(scans / "survey.las")
    summary = run([scans], output, pictures=True, threshold=0.3)
    assert (summary.detected, summary.skipped, summary.failed) == (3, 0, {})
    names = {name + suffix for name in ("kitti", "mesh", "survey") for suffix in OUTPUTS}
    assert files_below(output) == {*names, "summary.json"}

    record = json.loads((output / "kitti.json").read_text())
    (found,), xyz = record["detections"], points().xyz
    assert found["class"] == "vehicle" and found["score"] == 0.875 and found["heading"] == 0
    assert found["x"] == pytest.approx(float(xyz[:, 0].amax() + xyz[:, 0].amin()) / 2, abs=1e-4)
    assert found["length"] == pytest.approx(2 * float(np.ptp(xyz[:, 0].numpy())), abs=1e-4)
    assert record["file"] == str(scans / "kitti.bin") and record["points"] == 50 and record["threshold"] == 0.3
    assert set(record["seconds"]) == {"read", "detect", "write"} and record["versions"]["torch"] == torch.__version__
    assert json.loads((output / "survey.json").read_text())["origin"][:2] == [500_100, 4_000_200]

    painted = read_points(output / "kitti.ply").attributes["color"]
    assert torch.allclose(painted, torch.tensor(COLORS[0]).expand(50, 3), atol=1 / 255)
    with Image.open(output / "kitti.png") as image:
        assert image.size == (1600, 800)

    report = json.loads((output / "summary.json").read_text())
    assert report["detected"] == 3 and report["objects"] == {"vehicle": 3} and report["model"] == "fake"
    assert all(report["milliseconds"][stage] > 0 for stage in ("read", "detect", "write"))


def test_bad_files_are_said_in_one_line_and_the_rest_goes_on(tmp_path: Path, capsys) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    write_points(scans / "a.bin", points())
    (scans / "b.bin").write_bytes(b"cut short")
    np.array([[1, 2, np.nan, 4]], "<f4").tofile(scans / "c.bin")
    write_las(scans / "d.las")
    (scans / "d.las").write_bytes((scans / "d.las").read_bytes()[:300])
    (scans / "e.ply").write_text("no ply\n")
    write_points(scans / "f.bin", points(count=1))  # the detector refuses it
    write_points(scans / "g.bin", points())
    summary = run([scans], output)
    assert summary.detected == 2 and files_below(output) == {"a.json", "a.ply", "g.json", "g.ply", "summary.json"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for line, name in zip(lines, ("b.bin", "c.bin", "d.las", "e.ply", "f.bin"), strict=True):
        assert line.startswith("failed: ") and line.count(str(scans / name)) == 1
        assert summary.failed[str(scans / name)] == line.removeprefix("failed: ")
    assert "9 bytes" in lines[0] and "NaN" in lines[1] and "no point lies in the grid" in lines[4]
    assert json.loads((output / "summary.json").read_text())["failed"] == summary.failed


def test_inputs_of_one_stem_do_not_meet(tmp_path: Path) -> None:
    left, right, output = tmp_path / "left", tmp_path / "right", tmp_path / "out"
    for number, folder in enumerate((left, left / "deep", right)):
        folder.mkdir()
        write_points(folder / "x.bin", points(number))
    write_points(right / "x.ply", points(3))
    write_points(right / "summary.ply", points(4))
    write_points(right / "Y.BIN", points(5))
    (right / "z.pcd.BIN").write_bytes((left / "x.bin").read_bytes())
    (right / ".hidden.bin").write_bytes(b"")
    assert run([left, right], output).detected == 7
    inputs = ("left/x", "left/deep/x", "right/x.bin", "right/x.ply", "right/summary.ply", "right/Y", "right/z")
    expected = {name + suffix for name in inputs for suffix in (".json", ".ply")}
    assert files_below(output) == {*expected, "summary.json"}
    records = [json.loads((output / f"{name}.json").read_text()) for name in inputs]
    assert len({record["detections"][0]["x"] for record in records}) == 7
    # Another run that would put another file in the same place says so.
    assert run([left / "x.bin"], tmp_path / "single").detected == 1
    other = run([right / "x.bin"], tmp_path / "single")
    assert other.detected == 0 and "give another output folder" in other.failed[str(right / "x.bin")]
    assert [scan.target.name for scan in find_scans([left / "x.bin", left / "x.bin"], output)] == ["x"]


def test_only_what_is_new_is_done_again(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    output = scans / "out"  # inside the folder that is read: what is written there is not read
    scans.mkdir()
    for name in "abc":
        write_points(scans / f"{name}.ply", points())
    assert run([scans], output).detected == 3
    assert run([scans], output).skipped == 3
    later = time.time_ns() + 10**9
    os.utime(scans / "b.ply", ns=(later, later))
    again = run([scans], output)
    assert (again.detected, again.skipped) == (1, 2)
    os.utime(scans / "b.ply", ns=(0, 0))  # what `cp -p` does with an older scan
    assert run([scans], output).detected == 1
    (output / "c.ply").unlink()
    (output / "a.json").write_text("")  # a full disk, before it was an error
    assert run([scans], output).detected == 2
    assert run([scans], output, threshold=0.5).detected == 3
    assert run([scans], output, threshold=0.5, model="other").detected == 3
    pictures = run([scans], output, threshold=0.5, model="other", pictures=True)
    assert pictures.detected == 3 and pictures.objects == {"vehicle": 3}


def test_records_of_earlier_versions_are_gone_on_from(tmp_path: Path) -> None:
    """They say neither how `.bin` files were read nor which full intensity was guessed."""
    write_points(tmp_path / "a.ply", points())
    assert run([tmp_path / "a.ply"], tmp_path / "out").detected == 1
    file = tmp_path / "out" / "a.json"
    record = json.loads(file.read_text())
    del record["full_intensity"], record["inputs"]["layout"]
    file.write_text(json.dumps(record))
    again = run([tmp_path / "a.ply"], tmp_path / "out")
    assert (again.skipped, again.failed) == (1, {})


def test_a_model_that_changes_under_its_name_is_asked_again(tmp_path: Path) -> None:
    write_points(tmp_path / "a.ply", points())
    detector = FakeDetector()
    detector.scale = nn.Parameter(torch.ones(1))
    assert run([tmp_path / "a.ply"], tmp_path / "out", detector=detector).detected == 1
    assert run([tmp_path / "a.ply"], tmp_path / "out", detector=detector).skipped == 1
    detector.scale.data += 1
    assert run([tmp_path / "a.ply"], tmp_path / "out", detector=detector).detected == 1


def test_a_run_that_finds_all_done_keeps_the_sums(tmp_path: Path) -> None:
    write_points(tmp_path / "a.ply", points())
    np.savetxt(tmp_path / "b.xyz", points().xyz)
    files, output = [tmp_path / "a.ply", tmp_path / "b.xyz"], tmp_path / "out"
    run(files, output)
    first = json.loads((output / "summary.json").read_text())
    run(files, output)
    second = json.loads((output / "summary.json").read_text())
    assert (first["detected"], first["skipped"], second["detected"], second["skipped"]) == (2, 0, 0, 2)
    assert first["objects"] == {"vehicle": 2} and first["notes"] == {"intensity": 1} and first["seconds"]["write"] > 0
    for name in ("objects", "notes", "seconds", "milliseconds"):
        assert second[name] == first[name]
    assert first["scans_per_second"] > 0 and second["scans_per_second"] is None


def test_a_run_that_mixes_units_of_intensity_says_so(tmp_path: Path, capsys) -> None:
    files, output = [tmp_path / f"{name}.npy" for name in "abcde"], tmp_path / "out"
    for file, full in zip(files, (255, 255, 1, 1000, 1), strict=True):
        write_points(file, PointCloud(points().xyz, {"intensity": torch.linspace(0, full, 50)}))
    run(files, output)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": its intensities ")[0] for line in lines] == [
        f"warning: {files[row]}" for row in (0, 2, 3)
    ]
    assert "go up to 255: divided by it; --full-intensity sets it" in lines[0]
    assert "were divided by 1, those of files before by 255: --full-intensity sets one for all" in lines[1]
    assert "were divided by 1023, those of files before by 1 and 255: --full-intensity" in lines[2]
    assert json.loads((output / "summary.json").read_text())["full_intensities"] == {"255": 2, "1": 2, "1023": 1}
    run(files, output, inputs=Inputs(full_intensity=255.0))
    assert not capsys.readouterr().err
    assert json.loads((output / "summary.json").read_text())["full_intensities"] == {}


def test_a_layout_is_that_of_bare_rows_alone(tmp_path: Path) -> None:
    random, files = np.random.default_rng(0), [tmp_path / "a.bin", tmp_path / "b.npy"]
    rows = np.concatenate([random.normal(0, 10, (400, 3)), random.integers(0, 255, (400, 2))], 1)
    rows.astype("<f4").tofile(files[0])
    write_points(files[1], points())
    assert "may be those of nuscenes: say which by --layout" in run(files, tmp_path / "out").failed[str(files[0])]
    summary = run(files, tmp_path / "out", inputs=Inputs(layout="nuscenes"))
    assert summary.detected == 2 and not summary.failed
    assert json.loads((tmp_path / "out" / "a.json").read_text())["points"] == 400


def test_a_name_that_rich_would_draw_is_said_as_it_is(tmp_path: Path, capsys) -> None:
    (tmp_path / ":warning:[bold].bin").write_bytes(b"cut short")
    run([tmp_path / ":warning:[bold].bin"], tmp_path / "out")
    assert f"failed: {tmp_path}/:warning:[bold].bin has 9 bytes" in capsys.readouterr().err


def test_scans_of_bare_numbers_need_no_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open3d", "laspy", "spconv"):
        monkeypatch.setitem(sys.modules, name, None)
    write_points(tmp_path / "a.bin", points())
    summary = run([tmp_path / "a.bin"], tmp_path / "out", pictures=True)
    assert not summary.failed and files_below(tmp_path / "out") == {"summary.json", *(f"a{end}" for end in OUTPUTS)}


def test_nothing_to_do_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no point clouds in .*empty; accepted: .bin"):
        run([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*absent"):
        run([tmp_path / "absent"], tmp_path / "out")
    write_points(tmp_path / "x.ply", points())
    with pytest.raises(ValueError, match="holds the points to read; give another one"):
        run([tmp_path / "x.ply"], tmp_path)
    assert files_below(tmp_path) == {"x.ply"}


CHILD = """
import sys
from pathlib import Path
from tests.pointcloud.detection.test_detect import run
run([Path(sys.argv[1])], Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_thousand_scans_in_bounded_memory_go_on_after_a_kill(tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number in range(1000):
        write_points(scans / f"{number:04}.bin", points(number, 1000))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(scans), str(output)])
    try:
        deadline = time.monotonic() + 300
        while len(list(output.glob("*.json"))) < 200 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    for left in output.glob(".partial-*"):  # what the killed process was writing
        left.unlink()
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("*.json")}
    assert 190 <= len(done) < 1000 and not (output / "summary.json").exists()

    detector = FakeDetector()
    summary = run([scans], output, detector=detector)
    assert (summary.detected, summary.skipped, summary.failed) == (1000 - len(done), len(done), {})
    names = {f"{number:04}{suffix}" for number in range(1000) for suffix in (".json", ".ply")}
    assert files_below(output) == {*names, "summary.json"}
    assert all((output / name).stat().st_mtime_ns == before for name, before in done.items())
    for number in range(0, 1000, 37):
        record = json.loads((output / f"{number:04}.json").read_text())
        assert record["file"] == str(scans / f"{number:04}.bin") and len(record["detections"]) == 1
    assert max(detector.alive) <= 1  # the last cloud until the next is read
    assert detector.peaks[-1] - detector.peaks[50] < 16 * 1024  # KiB


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["detect", *map(str, arguments)])


def test_command_runs_a_real_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tmp_path / "tiny.safetensors"
    Detector(DSVT_TINY).save(model)
    write_points(tmp_path / "a.bin", points())
    (tmp_path / "b.bin").write_bytes(b"cut short")
    good = ("--model", model, "--output", tmp_path / "out", "--no-pictures", "--threshold", 0.05, "--device", "cpu")
    result = invoke(tmp_path / "a.bin", *good)
    assert result.exit_code == 0, result.output
    assert files_below(tmp_path / "out") == {"a.json", "a.ply", "summary.json"}
    for text in ("read", "detect", "write", "scans/s", "1 detected, 0 done before, 0 failed"):
        assert text in result.stdout
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["model"] == str(model) and all(found["class"] in CLASSES for found in record["detections"])
    mixed = invoke(tmp_path / "a.bin", tmp_path / "b.bin", *good)
    assert mixed.exit_code == 1 and "0 detected, 1 done before, 1 failed" in mixed.stdout


def test_command_refuses_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "dsvt-tiny.safetensors").write_bytes(b"")
    monkeypatch.setattr(shipped, "EMBEDDED", tmp_path / "embedded")
    write_points(tmp_path / "a.bin", points())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    cases = {
        ("--model", "nothing"): "unknown model 'nothing'; shipped: dsvt-tiny; or give a file's path",
        ("--model", tmp_path / "model.safetensors"): "no safetensors file",
        ("--device", "toaster"): "device 'toaster' is not here; accepted: auto, cpu, cuda or cuda:N",
        ("--layout", "other"): "unknown layout 'other'; accepted: kitti, nuscenes, waymo",
    }
    for options, message in cases.items():
        result = invoke(tmp_path / "a.bin", "--output", tmp_path / "out", *options)
        assert result.exit_code == 2 and message in result.stderr
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()

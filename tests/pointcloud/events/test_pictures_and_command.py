"""Pictures of events, and the command over files, folders and videos."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pointcloud.cli import app
from pointcloud.events import pictures
from pointcloud.events.files import read_events, write_events
from pointcloud.events.pictures import BACKGROUND, BRIGHTER, DARKER, event_frame, shrunk, time_surface, write_animation
from pointcloud.events.record import Events
from tests.pointcloud.events.files.recordings import some_events


def two_pixels() -> Events:
    x, y = torch.tensor([1, 1, 2]).int(), torch.tensor([0, 0, 1]).int()
    return Events(torch.tensor([0, 10, 100_000]), x, y, torch.tensor([True, False, True]), 4, 3)


def test_a_frame_shows_the_last_event_of_each_pixel() -> None:
    image = event_frame(two_pixels())
    assert image.shape == (3, 4, 3)
    assert tuple(image[0, 1]) == DARKER and tuple(image[1, 2]) == BRIGHTER
    assert (image == BACKGROUND).all(2).sum() == 10


def test_older_events_are_darker() -> None:
    light = time_surface(two_pixels()).astype(int).sum(2)
    assert light[1, 2] > light[0, 1] > light[2, 0]
    with pytest.raises(ValueError, match="decay"):
        time_surface(two_pixels(), 0)


def test_an_animation_has_a_frame_for_each_window(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", two_pixels(), 50_000)
    frames = imageio.imread(tmp_path / "a.gif", index=None)
    assert frames.shape == (3, 3, 4, 3)
    assert not np.array_equal(frames[0], frames[2])
    with pytest.raises(ValueError, match="too long"):
        write_animation(tmp_path / "a.gif", two_pixels(), 1)


def test_a_large_sensor_is_drawn_in_coarser_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shrunk(two_pixels(), 12).width == 4
    coarse = shrunk(two_pixels(), 11)
    assert (coarse.width, coarse.height, coarse.x.tolist(), coarse.y.tolist()) == (2, 2, [0, 0, 1], [0, 0, 0])
    monkeypatch.setattr(pictures, "MOST_MOVING", 3 * 11)
    write_animation(tmp_path / "a.gif", two_pixels(), 50_000)
    frames = imageio.imread(tmp_path / "a.gif", index=None)
    assert frames.shape == (3, 2, 2, 3) and tuple(frames[2, 0, 1]) == BRIGHTER


def test_the_command_goes_on_past_a_bad_file(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "below").mkdir(parents=True)
    write_events(source / "below/good.npz", some_events())
    (source / "bad.bin").write_bytes(b"123")
    done = CliRunner().invoke(app, ["events", str(source), "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "good.npz: 200 events in 0." in done.output and "34 x 34 pixels" in done.output
    assert f"failed: {source / 'bad.bin'} has 3 bytes" in done.output
    written = sorted(path.name for path in (tmp_path / "out/below").iterdir())
    assert written == ["good.npz.gif", "good.npz.json", "good.npz.png", "good.npz.surface.png"]


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointcloud.events import inspect

    source, out, read = tmp_path / "a.npz", tmp_path / "out", []
    monkeypatch.setattr(inspect, "write_animation", lambda path, *_: path.write_bytes(b"GIF"))
    monkeypatch.setattr(inspect, "read_events", lambda path, sort: read.append(path) or read_events(path, sort=sort))
    write_events(source, some_events())

    def run(*options: str) -> str:
        read.clear()
        done = CliRunner().invoke(app, ["events", str(source), "--output", str(out), *options])
        assert done.exit_code == 0, done.output
        return done.output

    first = run()
    assert len(read) == 1 and "done before" not in first
    assert first.splitlines()[0] + " (done before)" == run().splitlines()[0] and not read
    assert "done before" not in run("--sort") and len(read) == 1  # asked otherwise
    (out / "a.npz.gif").unlink()
    run("--sort")
    assert len(read) == 1 and (out / "a.npz.gif").is_file()
    write_events(source, some_events(100))
    assert "100 events" in run("--sort") and len(read) == 1
    (tmp_path / "other").mkdir()
    write_events(tmp_path / "other/a.npz", some_events())
    done = CliRunner().invoke(app, ["events", str(tmp_path / "other/a.npz"), "--output", str(out)])
    assert done.exit_code == 1 and "give another output folder" in done.output


def test_recordings_have_places_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_events(tmp_path / folder / "a.npz", some_events())
    monkeypatch.chdir(tmp_path)

    def run(*paths: str) -> list[str]:
        done = CliRunner().invoke(app, ["events", *paths, "--output", "out"])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[:-1]

    assert not any(line.endswith("(done before)") for line in run("one", "two/a.npz"))
    assert (tmp_path / "out/one/a.npz.gif").is_file() and (tmp_path / "out/two/a.npz.json").is_file()
    again = run(str(tmp_path / "one"), "one/../two", "two/a.npz")
    assert len(again) == 3 and all(line.endswith("(done before)") for line in again)


def test_the_command_simulates(tmp_path: Path) -> None:
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    for number in range(5):
        frames[number, :, 5 * number : 5 * number + 5] = 255
    imageio.imwrite(tmp_path / "bar.gif", frames, duration=100)
    done = CliRunner().invoke(
        app, ["events", "--simulate", str(tmp_path / "bar.gif"), "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    events = read_events(tmp_path / "out/bar.npz")
    assert len(events) > 500 and (events.width, events.height) == (30, 20)
    assert (tmp_path / "out/bar.npz.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give recordings"),
        (["none.npz"], "there is no file or folder"),
        (["--simulate", "a.mp4"], "say with --output"),
    ],
)
def test_the_command_refuses_in_a_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["events", *arguments])
    assert done.exit_code == 2 and said in done.output

"""The command that trains routers, from videos in a folder to a generation with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

import accel
from accel.cli import app
from accel.errors import InputError
from accel.routing.recipe import Recipe
from accel.workbench import captioned_videos
from accel.workbench.captioned_videos import find_videos, read_video, samples_of
from accel.workbench.loading import LoadedPipeline, load_pipeline
from accel.workbench.router_training import check_trainable, train_routers
from tests.accel.wan_models import pipeline
from tests.tiny_wan import save_tiny, tiny_pipeline

DEFAULTS = {
    "num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0,
    "max_sequence_length": 16,
}  # fmt: skip
SIZE = {"frames": 5, "height": 32, "width": 32}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers its precision for as long as a process lives."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two short videos with captions: one dark, one bright."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, grey in (("dark", 30), ("bright", 220)):
        frames = np.full((6, 32, 48, 3), grey, dtype=np.uint8)
        imageio.mimwrite(folder / f"{name}.mp4", list(frames), fps=8, macro_block_size=1)  # type: ignore[arg-type]
        (folder / f"{name}.txt").write_text("a red circle moves left\n")
    return folder


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["train-router", *map(str, arguments)])


@pytest.mark.parametrize("backbone", ["frozen", "joint"])
def test_from_videos_to_a_generation(tmp_path: Path, data: Path, backbone: str) -> None:
    model, output = save_tiny(tmp_path / "tiny", **DEFAULTS), tmp_path / "routers"
    given = ["--model", model, "--data", data, "--output", output, "--dtype", "float32", "--backbone", backbone]
    given += ["--width-rate", 0.5, "--backbone-rate", 1e-3] if backbone == "joint" else []
    done = invoke(*given, "--steps", 3, "--batch", 2)
    assert done.exit_code == 0, done.output
    assert "step 3 loss " in done.stdout and " gates " in done.stdout and "routers.safetensors" in done.stdout
    files = {"checkpoint.pt", "config.json", "latents.safetensors", "routers.safetensors"}
    files |= {"backbone.safetensors"} if backbone == "joint" else set()
    assert {path.name for path in output.iterdir()} == files
    again = invoke(*given, "--steps", 4)
    assert again.exit_code == 2 and "holds a training already; give --resume to go on" in again.stderr
    other = invoke(*given, "--steps", 4, "--resume")
    assert other.exit_code == 2 and "is of a training with batch 2, not 1; give that" in other.stderr
    more = invoke(*given, "--steps", 4, "--resume", "--batch", 2)
    assert more.exit_code == 0 and "step 4 loss " in more.stdout
    loaded = load_pipeline(str(model), "cpu", "float32")
    call = loaded.defaults | {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    with accel.enabled(loaded.pipeline, None, cache=f"routers:path={output}") as handle:
        assert torch.as_tensor(loaded.pipeline("a red circle moves left", **call).frames).isfinite().all()
        assert len(handle.blocks()) == 3 * 2
    made = CliRunner().invoke(
        app,
        ["generate", "a red circle", "--method", "svg-ear", "--model", str(model),
         "--cache", f"routers:path={output}", "--dtype", "float32",
         "--output", str(tmp_path / "video")],
    )  # fmt: skip
    assert made.exit_code == 0, made.output


def test_the_help_names_what_it_takes() -> None:
    said = invoke("--help", "--output", "x").stdout
    for option in ("--data", "--output", "--steps", "--rate", "--low-rate", "--width-rate", "--backbone", "--resume"):
        assert option in said
    assert "E-DiT" in said


def test_videos_are_encoded_once(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, file = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS), tmp_path / "latents.safetensors"
    said: list[str] = []
    first = samples_of(loaded, data, SIZE, file, said.append)
    assert said == ["looking at 2 videos", "encoding bright.mp4, 1 of 2", "encoding dark.mp4, 2 of 2"]
    assert first.latents.shape == (2, 12, 2, 4, 4) and first.text.shape[:2] == (2, 16) and first.empty.shape[0] == 1
    assert not torch.equal(first.latents[0], first.latents[1]) and not torch.equal(first.text[:1], first.empty)
    monkeypatch.setattr(captioned_videos, "read_video", None)
    again = samples_of(loaded, data, SIZE, file)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    monkeypatch.undo()
    (data / "dark.txt").write_text("a blue circle moves left")
    assert not torch.equal(samples_of(loaded, data, SIZE, file).text, first.text), "another caption is encoded"
    file.write_bytes(b"no")
    assert samples_of(loaded, data, SIZE, file).latents.isfinite().all()


@pytest.mark.parametrize("frames", [0, 3])
def test_all_videos_are_looked_at_before_one_is_encoded(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    last = data / "zebra.mp4"
    (data / "zebra.txt").write_text("a red circle moves left")
    if frames:
        pictures: Any = list(np.zeros((frames, 32, 48, 3), dtype=np.uint8))
        imageio.mimwrite(last, pictures, fps=8, macro_block_size=1)  # type: ignore[arg-type]
    else:
        last.write_bytes(b"no video")
    monkeypatch.setattr(captioned_videos, "_latents", pytest.fail)
    loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
    said = "has 3 frames, and 5 are asked for; give --frames, or cut it" if frames else "cannot be read as a video"
    with pytest.raises(InputError, match=f"zebra.mp4' {said}"):
        samples_of(loaded, data, SIZE, tmp_path / "latents.safetensors")


def test_a_video_is_scaled_and_cut(data: Path) -> None:
    video = read_video(data / "bright.mp4", 5, 64, 64)
    assert video.shape == (1, 3, 5, 64, 64) and -1 <= video.min() <= video.max() <= 1
    assert video.mean().item() == pytest.approx(220 / 127.5 - 1, abs=0.05)


def test_data_that_cannot_be_used(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="holds no videos; give a folder of NAME.mp4, with captions in NAME.txt"):
        find_videos(tmp_path / "none")
    with pytest.raises(InputError, match="bright.mp4' has 6 frames, and 9 are asked for; give --frames, or cut it"):
        read_video(data / "bright.mp4", 9, 32, 32)
    (data / "dark.txt").write_text("\n")
    refused = invoke("--data", data, "--output", tmp_path / "routers")
    assert refused.exit_code == 2 and "error: " in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert "dark.mp4' has no caption: write what it shows to dark.txt beside it" in refused.stderr
    (data / "dark.txt").write_bytes("a caf\u00e9".encode("latin-1"))
    with pytest.raises(InputError, match="dark.txt' cannot be read as text in UTF-8"):
        find_videos(data)
    assert not (tmp_path / "routers").exists()
    (data / "dark.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="dark.mp4' cannot be read as a video"):
        read_video(data / "dark.mp4", 5, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "melted"], "backbone is 'melted'; accepted: frozen, joint"),
        (["--rate", "1.5"], "rate is 1.5; give a share above 0, and at most 1"),
        (["--width-rate", "0.5"], "width_rate is 0.5 with a frozen backbone"),
        (["--variant", "tiny"], "variant is 'tiny'; accepted: published, shared"),
        (["--seed", "-1"], "seed is -1; it must be at least 0 and below 2**31"),
    ],
)
def test_bad_options(tmp_path: Path, data: Path, arguments: list[str], message: str) -> None:
    refused = invoke("--data", data, "--output", tmp_path / "routers", *arguments)
    assert refused.exit_code == 2 and f"error: {message}" in refused.stderr and not (tmp_path / "routers").exists()


def test_pipelines_that_cannot_be_trained() -> None:
    with pytest.raises(InputError, match="'two' has two transformers, and routers are trained for one"):
        check_trainable(LoadedPipeline(pipeline("wan-2.2"), "two", DEFAULTS))
    half = pipeline("wan-2.1")
    half.transformer.half()
    with pytest.raises(InputError, match="dtype float16 has too small a range for training"):
        check_trainable(LoadedPipeline(half, "half", DEFAULTS))


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, data: Path) -> None:
    def train(output: Path, stop: int = 99, resume: bool = False) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)

        def report(step: int, message: str) -> None:
            if step == stop:
                raise KeyboardInterrupt

        loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
        options: dict[str, Any] = dict(every=2, drop_caption=0.5, resume=resume, report=report)
        return train_routers(loaded, data, output, Recipe(learning_rate=1e-2), 6, SIZE, **options)

    whole = train(tmp_path / "whole").routers.state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop=3)
    again = train(tmp_path / "parts", resume=True).routers.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_is_there_is_not_lost(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the encoded videos by another setting, nor somebody's routers by a new training."""
    model, output = save_tiny(tmp_path / "tiny", **DEFAULTS), tmp_path / "routers"
    given = ["--model", model, "--data", data, "--dtype", "float32"]
    assert invoke(*given, "--output", output, "--steps", 1).exit_code == 0
    elsewhere = ["--model", f"{model}/", *given[2:]]  # the same model by another path
    assert invoke(*elsewhere, "--output", output, "--steps", 1, "--resume").exit_code == 0
    assert invoke(*given, "--output", output, "--steps", 1, "--resume").exit_code == 0
    before = (output / "latents.safetensors").read_bytes()
    shutil.copy(data / "dark.mp4", data / "third.mp4")
    shutil.copy(data / "dark.txt", data / "third.txt")
    monkeypatch.setattr(captioned_videos, "read_video", pytest.fail)
    refused = invoke(*given, "--output", output, "--steps", 2, "--resume")
    assert refused.exit_code == 2 and "is of a training with videos 2, not 3; give that" in refused.stderr
    (data / "third.mp4").unlink()
    caption = (data / "dark.txt").read_text()
    (data / "dark.txt").write_text("a blue circle moves left")
    refused = invoke(*given, "--output", output, "--steps", 2, "--resume")
    assert refused.exit_code == 2 and "is of a training on other videos or captions; give those" in refused.stderr
    (data / "dark.txt").write_text(caption)
    other = save_tiny(tmp_path / "other", **DEFAULTS)
    refused = invoke("--model", other, *given[2:], "--output", output, "--steps", 2, "--resume")
    assert refused.exit_code == 2 and "is of a training with model" in refused.stderr
    assert (output / "latents.safetensors").read_bytes() == before
    (output / "checkpoint.pt").unlink()
    refused = invoke(*given, "--output", output)
    assert refused.exit_code == 2 and "holds routers already, which would be replaced; move routers" in refused.stderr


def test_names_of_videos_may_hold_a_colon(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    Path("dark.mp4").rename("12:30.mp4")
    assert read_video(Path("12:30.mp4"), 5, 32, 32).shape == (1, 3, 5, 32, 32)

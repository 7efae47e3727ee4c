"""`accel bench --model` on saved pipelines of other families than Wan; by hand with every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from accel.cli import app
from accel.errors import InputError
from accel.methods.registry import by_name
from accel.workbench.generation import generate
from accel.workbench.loading import load_pipeline
from accel.workbench.preparing import Preparation
from tests.accel.models.saved_pipelines import hunyuan_video, ltx_2, minimax_h3

METHODS = "sparse-vdit", "svg-ear"
# Its autoencoder for sound is built with what torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def text_only_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tokenizer stand for the processor of Qwen3-VL, of which a prompt alone asks for no more than this."""
    monkeypatch.setattr(
        transformers.PreTrainedTokenizerFast, "create_mm_token_type_ids",
        lambda self, lists: [[0] * len(each) for each in lists], raising=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "frames", "height", "width"),
    [(hunyuan_video, 9, 64, 192), (ltx_2, 9, 128, 192), (minimax_h3, 124, 32, 64)],
)
def test_bench_of_a_saved_pipeline(
    save: Callable[[Path], None], frames: int, height: int, width: int, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    rows = tmp_path / "rows.json"
    done = CliRunner().invoke(app, [
        "bench", "ab", "--model", str(tmp_path / "model"), "--methods", ",".join(METHODS), "--densities", "0.5",
        "--dense-steps", "0.5", "--seeds", "1", "--steps", "3", "--frames", str(frames), "--height", str(height),
        "--width", str(width), "--dtype", "float32", "--json", str(rows),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = {row["method"]: row for row in json.loads(rows.read_text())}
    assert found.keys() == set(METHODS) and all(row["psnr_db"] > 20 for row in found.values())


@pytest.mark.slow
def test_blocks_of_another_family_rest_as_calibrated(tmp_path: Path) -> None:
    hunyuan_video(tmp_path / "model")
    table, rows = tmp_path / "table.json", tmp_path / "rows.json"
    size = ["--frames", "9", "--height", "64", "--width", "192", "--dtype", "float32", "--steps", "3"]
    where = ["--model", str(tmp_path / "model"), *size]
    done = CliRunner().invoke(
        app, ["calibrate", "ab", *where, "--budget", "0.7", "--ages", "1", "--output", str(table)]
    )
    assert done.exit_code == 0 and len(json.loads(table.read_text())["steps"]) == 3, done.output
    caches = f"table:table={table},dual-block:threshold=1:warmup=1"
    done = CliRunner().invoke(app, [
        "bench", "ab", *where, "--methods", "svg-ear", "--caches", caches, "--densities", "0.5", "--dense-steps", "0.2",
        "--seeds", "1", "--json", str(rows),
    ])  # fmt: skip
    found = json.loads(rows.read_text())
    assert done.exit_code == 0 and len(found) == 2, done.output
    assert all(row["blocks_computed"] < 1 and row["psnr_db"] > 20 for row in found)


def test_a_modular_pipeline_tells_its_steps(tmp_path: Path) -> None:
    """Its timesteps rise, and sound is ahead of the video: each step is found all the same."""
    minimax_h3(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")  # its index names the place where it was
    loaded, said = load_pipeline(str(tmp_path / "moved"), "cpu", "float32"), []
    assert loaded.defaults == {"num_frames": 124, "height": 768, "width": 1344, "num_inference_steps": 50}
    assert loaded.tokens(124, 64, 96) == 37 * 2 * 3
    size = dict(frames=124, height=64, width=96)
    method = by_name("svg-ear", density=0.5, dense_steps=0.25)
    made = generate(loaded, "ab", method, steps=5, progress=lambda share, message: said.append(message), **size)
    assert made.frames.shape == (124, 64, 96, 3) and said[-1] == "sparse step 5 of 5"
    assert [record.kind for record in made.records] == ["dense"] * 2 + ["sparse"] * 6
    assert [record.step for record in made.records] == [0, 0, 1, 1, 2, 2, 3, 3]
    for options, message in (
        (dict(steps=1), "it must be at least 2"),
        (dict(frames=22), r"frames is 22; this model makes 17n \+ 5: nearest is 124"),
        (dict(guidance_scale=2.0), "takes no guidance_scale; leave it out"),
        (dict(negative_prompt="b"), "MiniMaxH3ModularPipeline takes no negative prompt"),
        (dict(image=tmp_path), "MiniMaxH3ModularPipeline takes no image"),
    ):
        with pytest.raises(InputError, match=message):
            generate(loaded, "ab", **(size | options))


def test_modular_pipelines_that_cannot_be_loaded(tmp_path: Path) -> None:
    index = {"_class_name": "FluxModularPipeline", "_diffusers_version": "0.42.1"}
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="modular pipeline of class FluxModularPipeline; accepted of those: MiniMaxH3"):
        load_pipeline(str(tmp_path), "cpu")
    minimax_h3(tmp_path / "h3")
    with pytest.raises(InputError, match="MiniMaxH3ModularPipeline cannot be offloaded"):
        load_pipeline(str(tmp_path / "h3"), "cpu", how=Preparation(offload="model"))
    (tmp_path / "h3" / "vae" / "config.json").unlink()
    with pytest.raises(InputError, match="its vae could not be loaded"):
        load_pipeline(str(tmp_path / "h3"), "cpu")

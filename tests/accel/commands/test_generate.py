"""What `accel generate` takes beside prompt and size: pictures, LoRAs, offloading, small weights, compiled blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline
from PIL import Image
from typer.testing import CliRunner

from accel.caching.table import BlockTable
from accel.cli import app
from tests.tiny_wan import save_tiny, tiny_transformer

DEFAULTS = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("generate") / "tiny", **DEFAULTS)


@pytest.fixture(scope="module")
def image_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a pipeline from a picture: its transformer also sees the picture's latents, and which they are."""
    folder = tmp_path_factory.mktemp("generate") / "image"
    parts = WanPipeline.from_pretrained(model).components
    vae = parts["vae"]
    assert isinstance(vae, AutoencoderKLWan)
    made, config = tiny_transformer(), dict(tiny_transformer().config)
    torch.manual_seed(0)
    more = type(made).from_config(
        config | {"in_channels": 2 * vae.config["z_dim"] + vae.config["scale_factor_temporal"]}
    )
    kept = ("tokenizer", "text_encoder", "vae", "scheduler")
    pipe = WanImageToVideoPipeline(
        **{name: parts[name] for name in kept}, transformer=more, image_encoder=None, image_processor=None
    )
    pipe.save_pretrained(folder)
    (folder / "generation.json").write_text(json.dumps(DEFAULTS))
    return folder


def run(model: Path, output: Path, *arguments: str) -> Result:
    given = ["generate", "a red circle moves left", "--model", str(model), "--output", str(output), "--device", "cpu"]
    return CliRunner().invoke(
        app, [*given, "--dtype", "float32", "--method", "adaspa:density=0.4:block=16", *arguments]
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (("--negative-prompt", "a blue square", "--guidance-scale", "3"), None),
        (("--offload", "model"), None),
        (("--offload", "group"), None),
        (("--quantize", "int8"), "torchao"),
        pytest.param(("--compile", "--steps", "2"), None, marks=pytest.mark.slow),
    ],
)
def test_a_video_is_made(model: Path, tmp_path: Path, arguments: tuple[str, ...], needs: str | None) -> None:
    if needs is not None:
        pytest.importorskip(needs)
    result = run(model, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < report["density"] < 1


def test_a_picture_is_the_first_frame(image_model: Path, tmp_path: Path) -> None:
    Image.effect_noise((50, 30), 80).save(tmp_path / "first.png")
    result = run(image_model, tmp_path / "out", "--image", str(tmp_path / "first.png"), "--compare")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "report.json").read_text())["psnr_db"] > 10


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_lora_is_loaded(model: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipe = WanPipeline.from_pretrained(model)
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    weights = peft.get_peft_model_state_dict(pipe.transformer, adapter_name="default")
    WanPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=weights)
    plain, ours = (run(model, tmp_path / name, *more) for name, more in {
        "plain": (), "ours": ("--lora", str(tmp_path / "lora"))
    }.items())  # fmt: skip
    assert plain.exit_code == ours.exit_code == 0, ours.output
    videos = [next((tmp_path / name).glob("*.mp4")).read_bytes() for name in ("plain", "ours")]
    assert videos[0] != videos[1]


def refused(result: Result, output: Path) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2 and len(lines) == 1 and "Traceback" not in result.output and not output.exists()
    return lines[0]


def test_bad_input(model: Path, image_model: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "out", tmp_path / "no.png"
    text.write_text("no picture")
    for arguments, message in {
        ("--offload", "disk"): "unknown offload 'disk'; accepted: model, group",
        ("--quantize", "int4"): "unknown quantize 'int4'; accepted: int8",
        ("--image", str(text)): "WanPipeline takes no image; leave --image out",
    }.items():
        assert message in refused(run(model, output, *arguments), output)
    assert "WanImageToVideoPipeline needs an image; give --image FILE" in refused(run(image_model, output), output)
    for file in (text, tmp_path / "missing.png"):
        assert "cannot be read as a picture" in refused(run(image_model, output, "--image", str(file)), output)


@pytest.mark.parametrize(
    "command", [["bench"], ["calibrate", "a red circle"], ["draw", "svg-ear", "--prompt", "a red circle"]]
)
def test_commands_that_take_no_picture_say_so(image_model: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--model", str(image_model), "--device", "cpu", "--dtype", "float32"])
    message = f"needs an image, which accel {command[0]} does not take; give a text-to-video model"
    assert result.exit_code == 2 and f"error: WanImageToVideoPipeline {message}" in result.stderr


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_bad_loras(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, lora = tmp_path / "out", str(tmp_path / "lora.safetensors")
    with monkeypatch.context() as changed:
        changed.setattr("accel.workbench.preparing.find_spec", lambda name: None)
        message = refused(run(model, output, "--lora", lora), output)
        assert "--lora needs the package peft: pip install peft" in message
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    Path(lora).write_text("no weights")
    assert "could not be loaded into WanPipeline" in refused(run(model, output, "--lora", lora), output)
    save_file(
        {"unet.down.to_q.lora_A.weight": torch.ones(2, 2), "unet.down.to_q.lora_B.weight": torch.ones(2, 2)}, lora
    )
    assert "lora" in refused(run(model, output, "--lora", lora), output)


@pytest.mark.filterwarnings("ignore:accel runs dense attention:UserWarning")
def test_a_table_beside_the_model_is_the_default_cache(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "tables").mkdir()
    BlockTable("WanTransformer3DModel", ("cc", "rr", "cc")).save(folder / "tables" / "3.json")

    def report(*arguments: str) -> dict[str, Any]:
        given = ["generate", "a red circle moves left", "--model", str(folder), "--output", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*given, "--device", "cpu", "--dtype", "float32", *arguments])
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "report.json").read_text()) | {"said": result.output}

    by_itself = report("--compare")
    assert by_itself["cache"] == "table" and by_itself["blocks"] == ["cc", "rr", "cc"]
    assert "without it: --cache none" in by_itself["said"]
    plain = report("--cache", "none")
    assert plain["cache"] == "none" and "blocks rest" not in plain["said"]
    named = report("--method", "adaspa:block=16")
    assert named["cache"] == "none"
    own = report("--cache", "table:every=2")
    assert own["cache"] != "none" and "blocks rest" not in own["said"]

"""Loading: what comes out, and one line for everything that cannot be loaded or generated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from accel.errors import InputError
from accel.workbench import loading
from accel.workbench.loading import load_pipeline
from tests.tiny_wan import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real WanPipeline folder with random weights."""
    return save_tiny(tmp_path_factory.mktemp("pipelines") / "tiny")


def write_index(folder: Path, **entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.42.1", **entries}))
    return folder


@pytest.mark.parametrize("fast, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_folder_is_loaded_in_the_fast_dtype_with_the_pipelines_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
):
    names = ("avx512_bf16", "amx_bf16")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(names, fast), raising=False)
    loaded = load_pipeline(str(folder), device="cpu")
    assert loaded.name == str(folder)
    assert loaded.pipeline.transformer.dtype == dtype
    assert loaded.defaults["num_frames"] == 81 and loaded.defaults["guidance_scale"] == 5.0


def test_vae_stays_in_float32(folder: Path):
    pipeline = load_pipeline(str(folder), device="cpu", dtype="bfloat16").pipeline
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32


def test_generation_file_gives_the_defaults(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation.json").write_text('{"num_frames": 9, "guidance_scale": 1.0}')
    monkeypatch.setattr(loading, "embedded_folder", lambda: copy)
    loaded = load_pipeline(None, device="cpu")
    assert loaded.name == "shapes-wan"
    assert loaded.defaults["num_frames"] == 9 and loaded.defaults["width"] == 832
    (copy / "generation.json").write_text('{"number": 9}')
    with pytest.raises(InputError, match="keys from: num_frames"):
        load_pipeline(None, device="cpu")
    (copy / "generation.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_pipeline(None, device="cpu")


def test_absent_embedded_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "embedded_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="not in this installation; give --model"):
        load_pipeline()


def test_names_that_are_no_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file").touch()
    expected = {
        str(tmp_path / "absent"): "does not exist",
        str(tmp_path / "file"): "is a file",
        str(tmp_path): "no model_index.json",
        "nobody/no-such-model": "could not be downloaded from the Hugging Face Hub",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message) as caught:
            load_pipeline(name, device="cpu")
        assert len(str(caught.value).splitlines()) == 1


def test_pipelines_that_are_no_text_to_video(tmp_path: Path):
    image = write_index(tmp_path / "image", _class_name="StableDiffusionPipeline", unet=["diffusers", "UNet"])
    with pytest.raises(InputError, match="has no video transformer; accepted: WanTransformer3DModel"):
        load_pipeline(str(image), device="cpu")
    entries = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    flux = write_index(tmp_path / "flux", **entries)
    with pytest.raises(InputError, match="class FluxTransformer2DModel; .*accel.enable on its pipeline"):
        load_pipeline(str(flux), device="cpu")
    write_index(tmp_path / "wan")
    (tmp_path / "wan" / "model_index.json").write_text("{")
    with pytest.raises(InputError, match="unreadable model_index.json"):
        load_pipeline(str(tmp_path / "wan"), device="cpu")


def test_broken_weights(folder: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    transformer = WanTransformer3DModel.from_pretrained(copy / "transformer")
    with torch.no_grad():
        transformer.blocks[1].attn1.to_q.weight[0, 0] = torch.nan
    transformer.save_pretrained(copy / "transformer")
    with pytest.raises(InputError, match="blocks.1.attn1.to_q.weight holds NaN or Inf"):
        load_pipeline(str(copy), device="cpu")
    weights = next((copy / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not be loaded"):
        load_pipeline(str(copy), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; accepted: auto, float32"),
        ({"device": "tpu"}, "unknown device 'tpu'; accepted: auto, cpu, cuda"),
        ({"device": "cuda:99"}, "is not here"),
    ],
)
def test_unknown_device_or_dtype(arguments: dict[str, str], message: str):
    with pytest.raises(InputError, match=message):
        load_pipeline(None, **arguments)


@pytest.mark.parametrize(
    ("frames", "height", "width", "steps", "message"),
    [
        (10, 64, 64, 1, r"frames is 10; this model makes 4n \+ 1: nearest is 9 or 13"),
        (0, 64, 64, 1, "frames is 0; .* nearest is 1"),
        (401, 64, 64, 1, "frames is 401; .* nearest is 125"),
        (9, 60, 64, 1, "height is 60; this model makes multiples of 16: nearest is 48 or 64"),
        (9, 72, 64, 1, "height is 72; .* nearest is 64 or 80"),
        (9, 64, 0, 1, "width is 0; .* nearest is 16"),
        (9, 64, 512, 1, "width is 512; .* nearest is 256"),
        (9, 64, 64, 0, "steps is 0; it must be at least 1"),
    ],
)
def test_geometry_that_cannot_be_made(folder: Path, frames: int, height: int, width: int, steps: int, message: str):
    loaded = load_pipeline(str(folder), device="cpu")
    with pytest.raises(InputError, match=message):
        loaded.check(frames, height, width, steps)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (125, 16, 16), (9, 16, 256)])
def test_extreme_accepted_geometry_is_made(folder: Path, frames: int, height: int, width: int):
    loaded = load_pipeline(str(folder), device="cpu")
    loaded.check(frames, height, width, 1)
    latents = loaded.pipeline(
        "a red circle",
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    ).frames
    assert latents.isfinite().all()
    assert latents[0, 0].numel() == loaded.tokens(frames, height, width)

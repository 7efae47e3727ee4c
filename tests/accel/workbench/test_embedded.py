"""The model that ships with the package."""

from __future__ import annotations

import pytest
import torch

import accel
from accel.errors import InputError
from accel.methods.registry import SPARSE_METHODS, by_name
from accel.workbench.comparison import compare
from accel.workbench.generation import generate
from accel.workbench.loading import LoadedPipeline, embedded_folder, load_pipeline
from accel.workbench.their_caches import from_text
from tests.accel.wan_models import pipeline


@pytest.fixture(scope="module")
def loaded() -> LoadedPipeline:
    loaded = load_pipeline(None, device="cpu")
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


def test_size_and_geometry(loaded: LoadedPipeline) -> None:
    folder = embedded_folder()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 30 * 2**20
    weights = sum(parameter.numel() for parameter in loaded.pipeline.transformer.parameters())
    assert 6e6 <= weights <= 10e6
    assert loaded.pipeline.transformer.config.attention_head_dim == 64
    defaults = loaded.defaults
    assert loaded.tokens(defaults["num_frames"], defaults["height"], defaults["width"]) >= 8000


def test_captions_steer_the_latents(loaded: LoadedPipeline) -> None:
    def background(color: str) -> float:
        video = loaded.pipeline(
            f"a large red circle stays still on a {color} background",
            num_frames=13, height=64, width=64, num_inference_steps=6, guidance_scale=1.0, max_sequence_length=24,
            generator=torch.Generator().manual_seed(0),
        ).frames[0]  # fmt: skip
        return float(video[:, :8, :8].mean())

    assert background("black") < 0.25 < background("gray") < 0.75 < background("white")


@pytest.mark.parametrize("name", SPARSE_METHODS)
def test_methods_run_on_it(loaded: LoadedPipeline, name: str) -> None:
    options = {"density": 0.5} if name in ("svg2", "svg-ear") else {"density": 0.5, "block": 32}
    comparison = compare(
        loaded, by_name(name, **options), "a red circle moves left", steps=4, frames=13, height=64, width=64
    )
    report = comparison.report
    assert report["tokens"] == 256 and comparison.sparse.shape == (13, 64, 64, 3)
    assert 0 < report["density"] <= 1 and 0 < report["recall"] <= 1 and report["psnr_db"] > 10


def test_its_routers_need_no_path(loaded: LoadedPipeline) -> None:
    made = generate(
        loaded, "a red circle moves left", None, cache=from_text("routers"), steps=4, frames=13, height=64, width=64
    )
    policy = accel.load_routers(loaded.pipeline)
    assert 0.3 < made.report["blocks_computed"] < 1 and not policy.backbone
    assert policy.routers is not None and policy.routers.config.rest == "reuse"
    with pytest.raises(InputError, match="the routers are of a WanTransformer3DModel with 5 blocks of 256 channels"):
        accel.enable(pipeline("wan-2.1"), None, cache="routers")

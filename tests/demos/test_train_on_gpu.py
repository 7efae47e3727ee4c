"""Going on with the shipped weights: the stream of fresh videos, and a few steps from them to a new pipeline folder."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import pytest
import torch
import typer

from demos.shapes_wan import assemble, train_on_gpu
from demos.shapes_wan.pools import Batch, has_small_corners
from demos.shapes_wan.scenes import held_out_scenes
from demos.shapes_wan.shipped import load_shipped, shipped_autoencoder
from demos.shapes_wan.stream import Kind, Order, Stream, draw_shard, kind_of
from demos.shapes_wan.trainer import Generator, Recipe, Trainer


def test_kinds_of_shards() -> None:
    assert kind_of("full", 3) == kind_of("full", 5) == Kind("full", True)
    assert kind_of("full", 12) == Kind("full", False) and kind_of("coarse", 3) == Kind("coarse", False)


def test_a_shard_holds_unseen_scenes_with_more_small_corners() -> None:
    order = Order([Kind("coarse", False)], 0, 60, corners=1000, forms=0.5, seed=0)
    shard = draw_shard(order, random.Random(0))
    assert shard.clips.videos[0].shape == (60, 3, 13, 64, 64) and shard.clips.videos[0].dtype == torch.uint8
    assert shard.weights.shape == (60, 1, 4, 8, 8) and shard.weights.mean().item() == pytest.approx(1)
    captions = shard.clips.captions
    assert all(has_small_corners(caption) for caption in captions)
    assert not {scene.caption for scene in held_out_scenes()} & set(captions)
    few = draw_shard(order._replace(kinds=[Kind("thin", True)], few_videos=1), random.Random(0))
    assert len(few.clips.frames) == 5 and len(few.clips.videos) == 3 and few.weights.shape == (1, 1, 5, 8, 8)


def test_videos_are_repeated_to_fill_a_step() -> None:
    latents = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 4, 2, 2)
    batch = Batch(latents, ["a", "b", "c"], torch.arange(4), 4, latents[:, :1])
    filled = batch.filling(4, tokens=7 * 16)
    assert filled.captions == ["a", "b", "c", "a", "b", "c", "a"]
    assert filled.latents[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0] == filled.weights[:, 0, 0, 0, 0].tolist()
    assert batch.filling(4, tokens=1).captions == ["a"] and len(batch.fitting(4, tokens=10**6).captions) == 3


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    trainer = Trainer(12, Recipe())
    train_on_gpu.save(trainer, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    next(trainer.average.parameters()).data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite any more at step 0; .* lower --learning-rate"):
        train_on_gpu.save(trainer, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_nothing_is_written_without_a_step(tmp_path: Path) -> None:
    trainer, stream = Trainer(12, Recipe()), cast(Stream, None)
    with pytest.raises(ValueError, match="no step was made: 0 seconds were left for it; give more --minutes"):
        train_on_gpu.train(trainer, stream, tmp_path, "full:3", 1, -3.0, 0.4, 0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(typer.BadParameter, match="holds a training already; give --start-from .* to go on from it"):
        train_on_gpu.main(tmp_path)


def test_assemble_wants_both_or_none(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="--vae and --latents go together"):
        assemble.main(tmp_path, vae=tmp_path)


# Torch says that a norm with float32 weights has no fast path for bfloat16; that is so in training.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.slow
def test_smoke(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A few steps change the shipped weights a little; the file is small, can be gone on from, and makes a pipeline."""
    from diffusers import WanPipeline

    stage = tmp_path / "stage"
    train_on_gpu.main(stage, smoke=True)
    assert "step 2 loss" in (said := capfd.readouterr().out) and "2 steps" in said
    assert [path.name for path in stage.iterdir()] == ["checkpoint.pt"]
    assert (stage / "checkpoint.pt").stat().st_size < 16 * 2**20
    again = train_on_gpu.prepare(Recipe(), "cpu", stage).average.transformer.state_dict()
    assemble.main(stage, output=tmp_path / "model")
    pipeline = WanPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    shipped = Generator(12)
    load_shipped(shipped)
    old, new = (dict(module.named_parameters()) for module in (shipped.transformer, pipeline.transformer))
    change = [((new[name] - old[name]).norm() / old[name].norm().clamp(min=1e-3)).item() for name in old]
    assert 0 < max(change) < 0.5 and all(torch.equal(again[name], new[name]) for name in new)
    assert pipeline.vae.config.latents_mean == shipped_autoencoder().config.latents_mean
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline("a red circle moves left", num_frames=13, height=64, width=64, num_inference_steps=2).frames[0]
    assert video.shape == (13, 64, 64, 3)

"""The data generator and the training loops of shapes-wan, run for a few steps on tiny data."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from diffusers import AutoencoderKLWan

from accel.workbench.loading import embedded_folder, fast_bfloat16
from demos.shapes_wan import assemble, latents, shipped, train, train_vae
from demos.shapes_wan.checkpoint import load_checkpoint, save_checkpoint
from demos.shapes_wan.forms import form_weights
from demos.shapes_wan.model import build_tokenizer, save_pipeline
from demos.shapes_wan.muon import Muon, orthogonalize
from demos.shapes_wan.pools import Pools
from demos.shapes_wan.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    caption_of,
    held_out_scenes,
    parse_caption,
    render,
    sample_scene,
)
from demos.shapes_wan.shipped import shipped_autoencoder
from demos.shapes_wan.trainer import Generator


def test_held_out_captions_are_never_drawn() -> None:
    held_out = frozenset(scene.caption for scene in held_out_scenes())
    assert len(held_out) == 24
    generator = random.Random(0)
    assert not any(sample_scene(generator, held_out).caption in held_out for _ in range(2000))


def test_every_word_of_a_caption_is_a_token() -> None:
    tokenizer, generator = build_tokenizer(), random.Random(0)
    for _ in range(300):
        tokens = tokenizer(sample_scene(generator).caption).input_ids
        assert tokenizer.unk_token_id not in tokens and tokens[-1] == tokenizer.eos_token_id and len(tokens) <= 24


def test_a_caption_tells_its_scene() -> None:
    generator = random.Random(0)
    scenes = [sample_scene(generator) for _ in range(300)]
    assert [parse_caption(scene.caption) for scene in scenes] == scenes
    for wrong in ("", "a red star moves left", "a red circle moves left and"):
        with pytest.raises(ValueError, match="is no caption of shapes-wan; one reads like 'a large red circle"):
            parse_caption(wrong)


def test_the_loss_looks_where_another_shape_would_change_a_token() -> None:
    """Every shape of a place has the same weights; they are high exactly where the pictures of two shapes differ."""
    actor = parse_caption("a large red circle stays still").actors[0]
    captions = [caption_of((replace(actor, shape=shape),), "black", True, True) for shape in SHAPES]
    weights = form_weights([*captions, ""], torch.tensor([0.0, 0.5]), 16, 16, share=0.5)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert weights.mean((1, 2, 3, 4)).allclose(torch.ones(4)) and torch.equal(weights[3], torch.ones(1, 2, 16, 16))
    # The middle of the frame is covered whatever the shape, its corners never.
    assert weights[0, 0, 0, 8, 8] == weights[0, 0, 0, 0, 0] == weights[0].min()
    assert weights[0].max() > 3 and 0.02 < (weights[0, 0, 0] > 2).float().mean() < 0.15
    small = form_weights([captions[0].replace("large", "small")], torch.tensor([0.0, 0.5]), 16, 16, share=0.5)
    assert (small - 0.5).clamp(min=0).mean() == pytest.approx((weights[0] - 0.5).clamp(min=0).mean().item(), abs=1e-4)
    with pytest.raises(ValueError, match="share is 1.0, but it is a part of the loss"):
        form_weights(captions, torch.tensor([0.0]), 16, 16, share=1.0)


def test_actors_move_as_the_caption_says() -> None:
    scene = next(scene for scene in held_out_scenes() if len(scene.actors) == 1 and "left" in scene.caption)
    video = render(scene, 5, 64, 64, random.Random(0))
    color = torch.tensor(COLORS[scene.actors[0].color]).view(3, 1, 1, 1) / 127.5 - 1
    inside = (video - color).abs().amax(0) < 0.05
    columns = [frame.nonzero()[:, 1].float().mean().item() for frame in inside]
    assert columns == sorted(columns, reverse=True) and columns[0] - columns[-1] == pytest.approx(0.48 * 64, abs=2)
    background = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1) / 127.5 - 1
    assert torch.allclose(video[:, :, 0, 0], background.expand(3, 5))


def test_a_window_shows_a_part_of_the_same_picture() -> None:
    scene = held_out_scenes()[0]
    whole = render(scene, 3, 64, 64, random.Random(1))
    part = render(scene, 3, 32, 32, random.Random(1), window=(0.5, 1, 0, 0.5))
    assert torch.allclose(part, whole[:, :, 32:, :32], atol=1e-4)


def test_orthogonalize_makes_singular_values_near_one() -> None:
    for shape in ((2, 16, 64), (1, 64, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.max() < 1.3 and values.min() > 0.3


def test_muon_descends() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    target = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    optimizer = Muon([weight], lr=0.3)
    losses = []
    for _ in range(40):
        loss = (weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert load_checkpoint(tmp_path, model=second) == 0
    with pytest.raises(FileNotFoundError, match="earlier training"):
        load_checkpoint(tmp_path, required=True, model=second)
    save_checkpoint(tmp_path, 7, model=first)
    assert load_checkpoint(tmp_path, model=second) == 7 and torch.equal(first.weight, second.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoints_of_two_runs_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, save, inside = torch.nn.Linear(2, 2), torch.save, []

    def beside(state: object, file: Path) -> None:
        if not inside:
            inside.append(1)
            save_checkpoint(tmp_path, 2, model=model)
        save(state, file)

    monkeypatch.setattr("torch.save", beside)
    save_checkpoint(tmp_path, 1, model=model)
    assert load_checkpoint(tmp_path, model=model) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_another_schedule_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    train_vae.main(tmp_path, steps=1, image_steps=1, batch=1)
    with pytest.raises(typer.BadParameter, match="is of a training with --steps 1, not 2; give that to go on"):
        train_vae.main(tmp_path, steps=2, image_steps=1, batch=1)
    with pytest.raises(typer.BadParameter, match="is of a training with --learning-rate 0.003, not 1.0"):
        train_vae.main(tmp_path, steps=1, image_steps=1, batch=1, learning_rate=1.0)
    assert load_checkpoint(tmp_path) == 1


def test_crops_show_no_scene_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(train_vae, "render", lambda scene, *rest: seen.append(scene.caption) or torch.zeros(3, 1, 8, 8))
    train_vae.crop_batch(random.Random(0), 3000, frames=1)
    assert len(seen) == 3000 and not {scene.caption for scene in held_out_scenes()} & set(seen)


def test_a_new_model_keeps_tables_and_routers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    for name in ("tables/12.json", "routers/config.json", "transformer/old.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    vae = shipped_autoencoder()
    model = Generator(vae.config["z_dim"])
    save_pipeline(folder, model.transformer, vae, model.text_encoder)
    folder.rename(tmp_path / "model.old")  # as a run leaves it that is killed just there
    save_pipeline(folder, model.transformer, vae, model.text_encoder)
    assert (folder / "tables/12.json").is_file() and (folder / "routers/config.json").is_file()
    assert not (folder / "transformer/old.json").exists() and (folder / "model_index.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "tables stays: it was made for the weights before" in capsys.readouterr().out


def test_a_model_that_was_set_aside_is_put_back_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run was killed that was about to put a new one there."""
    folder, old = tmp_path / "model", tmp_path / "model.old"
    shutil.copytree(embedded_folder() / "vae", old / "vae")
    monkeypatch.setattr(shipped, "EMBEDDED", folder)
    with pytest.raises(FileNotFoundError, match="earlier training"):
        assemble.main(tmp_path / "stage", output=folder)
    assert (folder / "vae" / "config.json").is_file() and not old.exists()


def test_a_few_frames_are_those_of_the_whole_video() -> None:
    """The autoencoder is causal and forgets: the frames of a clip differ little from those of the whole video."""
    vae = AutoencoderKLWan.from_pretrained(embedded_folder() / "vae")
    whole = latents.encode_pool(vae, "thin", 1, seed=3)
    runs = [range(1), range(20, 22), range(32, 33)]
    some = latents.encode_pool(vae, "thin", 1, seed=3, runs=runs)
    assert whole["captions"] == some["captions"] and some["frames"] == [0, 20, 21, 32]
    expected = whole["latents"][:, :, some["frames"]].float()
    assert (some["latents"].float() - expected).norm() < 0.05 * expected.norm()
    frames = [frame for run in latents.choose_runs("full", random.Random(0)) for frame in run]
    assert frames[0] == 0 and frames[-1] == 32 and len(frames) == 5 and frames == sorted(set(frames))


def test_a_pool_with_too_few_frames_is_left_out(tmp_path: Path) -> None:
    torch.save({"mean": torch.zeros(2), "std": torch.ones(2)}, tmp_path / "stats.pt")
    for shard, frames in ((0, [0, 9]), (1, [0, 4, 9])):
        pool = {
            "latents": torch.full((2, 2, len(frames), 4, 4), shard).half(),
            "frames": frames,
            "captions": ["a", "b"],
        }
        torch.save(pool, tmp_path / f"full-{shard:03d}.pt")
    pools = Pools(tmp_path, "full", 3, seed=0)
    for _ in range(3):
        batch = pools.batch(drop_caption=0.0)
        assert batch.latents.eq(1).all() and sorted(batch.captions) == ["a", "b"] and batch.length == 33
        assert batch.frames.tolist() == [0, 4, 9]
        assert len(batch.fitting(3, tokens=95).captions) == 1 and len(batch.fitting(3, tokens=96).latents) == 2
    with pytest.raises(FileNotFoundError, match="no full pool .* 4 latent frames"):
        Pools(tmp_path, "full", 4, seed=0).batch(drop_caption=0.0)


def test_statistics_of_latents_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, pools = torch.nn.Linear(1, 1), tmp_path / "pools"
    save_checkpoint(tmp_path, 1, vae=vae)

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(latents, "build_vae", lambda: vae)
    monkeypatch.setattr(latents, "encode_pool", lambda *given, **options: {"latents": torch.randn(2, 3, 1, 4, 4)})
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr("torch.save", full_disk)
        latents.main(tmp_path, pools, shards=1)
    assert list(pools.iterdir()) == []
    latents.main(tmp_path, pools, shards=1)
    assert sorted(path.name for path in pools.iterdir()) == ["full-000.pt", "stats.pt"]


def test_pools_draw_small_corners_more_often(tmp_path: Path) -> None:
    torch.save({"mean": torch.zeros(2), "std": torch.ones(2)}, tmp_path / "stats.pt")
    captions = [f"a {form} stays still" for form in ("small red square", "small red circle", "large red triangle")]
    pool = {"latents": torch.zeros(3, 2, 1, 4, 4), "frames": [0], "captions": captions}
    torch.save(pool, tmp_path / "full-000.pt")
    drawn = Pools(tmp_path, "full", 1, seed=0, corners=3).batch(drop_caption=0.0).captions
    assert sorted(drawn) == sorted(captions + 2 * captions[:1])


# Torch says that a norm with float32 weights has no fast path for bfloat16; that is so in training.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.slow
def test_the_whole_chain_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import WanPipeline

    threads = torch.get_num_threads()
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(latents, "STATISTICS", 8)
    vae, pools, stage = tmp_path / "vae", tmp_path / "latents", tmp_path / "coarse"
    train_vae.main(vae, steps=2, image_steps=1, batch=1)
    latents.main(vae, pools, "coarse", count=4, shards=1, threads=threads)
    train.main(stage, "coarse:4", pools, steps=1, tokens=512)
    narrow = fast_bfloat16(torch.device("cpu"))  # without it one step takes 20 seconds
    train.main(stage, "coarse:3,coarse:4", pools, steps=2, tokens=512, forms=0.5, long_text=1.0, bfloat16=narrow)
    assert torch.load(stage / "checkpoint.pt", weights_only=True)["step"] == 2
    assemble.main(stage, vae, pools, tmp_path / "model", "coarse", steps=2)
    pipeline = WanPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline("a red circle moves left", num_frames=13, height=64, width=64, num_inference_steps=2).frames[0]
    assert video.shape == (13, 64, 64, 3)

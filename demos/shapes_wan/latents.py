"""Pools of encoded videos: the training data of the transformer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from accel.files import replacing
from demos.shapes_wan.checkpoint import load_checkpoint
from demos.shapes_wan.model import GEOMETRIES
from demos.shapes_wan.scenes import Scene, render, sample_scene, unseen_scenes
from demos.shapes_wan.train_vae import build_vae

STRIDE = 4  # pixel frames a latent frame
WARM_UP = 4  # latent frames before those that are kept: what came earlier changes a latent by less than 2 %
STATISTICS = 200  # videos that mean and deviation of the latents are those of


class Clips(NamedTuple):
    """Drawn videos in [-1, 1]: for each of `runs` of latent frames the pixels that it is encoded from."""

    runs: list[range]
    videos: list[Float[Tensor, "b 3 t h w"]]
    captions: list[str]

    @property
    def frames(self) -> list[int]:
        """The latent frames of all runs."""
        return [frame for run in self.runs for frame in run]


def draw_clips(
    geometry: str,
    count: int,
    generator: random.Random,
    runs: list[range] | None = None,
    scenes: Callable[[random.Random], Scene] = sample_scene,
) -> Clips:
    """Draw `count` fresh videos; `runs` names the latent frames to be encoded, all by default."""
    runs = runs or [range(latent_length(geometry))]
    chosen = [scenes(generator) for _ in range(count)]
    seeds = [generator.random() for _ in chosen]
    videos = [_draw_run(geometry, chosen, seeds, run) for run in runs]
    return Clips(runs, videos, [scene.caption for scene in chosen])


def _draw_run(geometry: str, scenes: list[Scene], seeds: list[float], run: range) -> Float[Tensor, "b 3 t h w"]:
    frames, height, width = GEOMETRIES[geometry]
    first, last = STRIDE * max(0, run.start - WARM_UP), STRIDE * (run.stop - 1)
    times = (first / (frames - 1), last / (frames - 1))
    # Positions are drawn while rendering: the same seed puts every clip of a video at the same place.
    return torch.stack(
        [
            render(scene, last - first + 1, height, width, random.Random(seed), times=times)
            for scene, seed in zip(scenes, seeds, strict=True)
        ]
    )


@torch.no_grad()
def encode_clips(vae: Any, clips: Clips) -> Float[Tensor, "b c t h w"]:
    """Return the latents of all runs, one after another."""
    parts = zip(clips.videos, clips.runs, strict=True)
    return torch.cat(
        [vae.encode(video.to(vae.device)).latent_dist.mode()[:, :, -len(run) :] for video, run in parts], 2
    )


def encode_pool(
    vae: Any, geometry: str, count: int, seed: int, runs: list[range] | None = None, batch: int = 8
) -> dict[str, Any]:
    """Return `{"latents": (count c t h w) in float16, "frames": list of t, "captions": [...]}` of fresh videos.

    `runs` names the latent frames that are encoded, all by default: a few cost a fraction of a whole video.
    """
    generator, scenes = random.Random(seed), unseen_scenes()
    runs = runs or [range(latent_length(geometry))]
    latents, captions = [], []
    while len(captions) < count:
        clips = draw_clips(geometry, min(batch, count - len(captions)), generator, runs, scenes)
        latents.append(encode_clips(vae, clips).half().cpu())
        captions += clips.captions
    return {"latents": torch.cat(latents), "frames": clips.frames, "captions": captions}


def latent_length(geometry: str) -> int:
    """Return the number of latent frames of a geometry's videos."""
    return (GEOMETRIES[geometry][0] - 1) // STRIDE + 1


def choose_runs(geometry: str, generator: random.Random) -> list[range]:
    """Return the first latent frame, three neighbours from anywhere between, and the last one."""
    last = latent_length(geometry) - 1
    start = generator.randrange(1, last - 2)
    return [range(1), range(start, start + 3), range(last, last + 1)]


def main(
    vae: Annotated[Path, typer.Option(help="checkpoint folder of train_vae")] = Path("runs/vae"),
    output: Annotated[Path, typer.Option(help="folder of the pools")] = Path("runs/latents"),
    geometry: Annotated[str, typer.Option(help=", ".join(GEOMETRIES))] = "full",
    count: Annotated[int, typer.Option(help="videos a shard")] = 100,
    shards: int = 16,
    first: Annotated[int, typer.Option(help="number of the first shard")] = 0,
    some_frames: Annotated[bool, typer.Option(help="encode five latent frames of each video only")] = False,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Encode shards of videos; a shard that is there already is kept."""
    torch.set_num_threads(threads)
    model = build_vae().to(device).eval()
    load_checkpoint(vae, required=True, vae=model)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "stats.pt").exists():
        latents = encode_pool(model, geometry, STATISTICS, seed=0)["latents"].float()
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        with replacing(output / "stats.pt") as temporary:
            torch.save({"mean": mean, "std": std}, temporary)
    for shard in range(first, first + shards):
        path = output / f"{geometry}-{shard:03d}.pt"
        if path.exists():
            continue
        start, seed = time.perf_counter(), 1000 * sorted(GEOMETRIES).index(geometry) + shard + 1
        runs = choose_runs(geometry, random.Random(seed)) if some_frames else None
        pool = encode_pool(model, geometry, count, seed, runs)
        with replacing(path) as temporary:
            torch.save(pool, temporary)
        print(f"{path} {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)

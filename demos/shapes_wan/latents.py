"""Pools of encoded videos: the training data of the transformer."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from demos.shapes_wan.checkpoint import load_checkpoint
from demos.shapes_wan.model import GEOMETRIES
from demos.shapes_wan.scenes import held_out_scenes, render, sample_scene
from demos.shapes_wan.train_vae import build_vae


@torch.no_grad()
def encode_pool(vae: torch.nn.Module, geometry: str, count: int, seed: int, batch: int = 8) -> dict:
    """Return `{"latents": (count c t h w) in float16, "captions": [...]}` of freshly drawn videos."""
    generator = random.Random(seed)
    held_out = frozenset(scene.caption for scene in held_out_scenes())
    device = next(vae.parameters()).device
    latents, captions = [], []
    while len(captions) < count:
        scenes = [sample_scene(generator, held_out) for _ in range(min(batch, count - len(captions)))]
        videos = torch.stack([render(scene, *GEOMETRIES[geometry], generator) for scene in scenes])
        latents.append(vae.encode(videos.to(device)).latent_dist.mode().half().cpu())
        captions += [scene.caption for scene in scenes]
    return {"latents": torch.cat(latents), "captions": captions}


def main(
    vae: Annotated[Path, typer.Option(help="checkpoint folder of train_vae")] = Path("runs/vae"),
    output: Annotated[Path, typer.Option(help="folder of the pools")] = Path("runs/latents"),
    geometry: Annotated[str, typer.Option(help=", ".join(GEOMETRIES))] = "coarse",
    count: Annotated[int, typer.Option(help="videos a shard")] = 1000,
    shards: int = 6,
    first: Annotated[int, typer.Option(help="number of the first shard")] = 0,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Encode shards of videos; a shard that is there already is kept."""
    torch.set_num_threads(threads)
    model = build_vae().to(device).eval()
    load_checkpoint(vae, required=True, vae=model)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "stats.pt").exists():
        latents = encode_pool(model, geometry, 200, seed=0)["latents"].float()
        mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        torch.save({"mean": mean, "std": std}, output / "stats.pt")
    for shard in range(first, first + shards):
        path = output / f"{geometry}-{shard:03d}.pt"
        if path.exists():
            continue
        start = time.perf_counter()
        pool = encode_pool(model, geometry, count, seed=1000 * sorted(GEOMETRIES).index(geometry) + shard + 1)
        torch.save(pool, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{path} {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)

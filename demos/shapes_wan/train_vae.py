"""Train the AutoencoderKLWan of shapes-wan on crops of drawn videos."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKLWan
from torch.nn.functional import l1_loss

from demos.shapes_wan.checkpoint import load_checkpoint, save_checkpoint
from demos.shapes_wan.scenes import render, unseen_scenes

Z_DIM = 12
# Wan 2.2's layout: pixel unshuffle (patch_size 2) and two residual down-samplings, 8x in space, 4x in time.
VAE_CONFIG = dict(
    base_dim=16,
    decoder_base_dim=16,
    z_dim=Z_DIM,
    dim_mult=[1, 2, 2],
    is_residual=True,
    num_res_blocks=1,
    temperal_downsample=[True, True],
    patch_size=2,
    in_channels=12,
    out_channels=12,
    scale_factor_spatial=8,
    scale_factor_temporal=4,
)


def build_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """Return the untrained autoencoder; `mean` and `std` normalise its latents, one value a channel."""
    vae = AutoencoderKLWan(**VAE_CONFIG, latents_mean=mean or [0.0] * Z_DIM, latents_std=std or [1.0] * Z_DIM)
    # Start with little sampling noise: at the usual unit variance the decoder learns nothing for long.
    torch.nn.init.constant_(vae.quant_conv.bias[Z_DIM:], -4.0)
    return vae


def crop_batch(generator: random.Random, batch: int, frames: int = 9, side: int = 64) -> torch.Tensor:
    """Return crops (batch 3 frames side side) taken at the scales that the transformer is trained at."""
    videos, unseen = [], unseen_scenes()
    for _ in range(batch):
        scale = side / generator.choice((64, 128, 192, 256))
        # Crops lie on the shapes: plain background teaches nothing.
        top, left = (min(max(generator.gauss(0.5, 0.2) - scale / 2, 0), 1 - scale) for _ in range(2))
        length = (frames - 1) / generator.choice([whole for whole in (12, 28) if whole >= frames - 1])
        start = generator.uniform(0, 1 - length)
        window = (top, top + scale, left, left + scale)
        videos.append(render(unseen(generator), frames, side, side, generator, window, (start, start + length)))
    return torch.stack(videos)


def vae_loss(vae: AutoencoderKLWan, video: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training loss and the reconstruction's mean squared error."""
    posterior = vae.encode(video).latent_dist
    latent = posterior.sample()
    decoded = vae.decode(latent).sample
    error = decoded - video
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = l1_loss(decoded, video) + error.square().mean() + kl_weight * kl
    return loss, error.square().mean().detach()


def main(
    output: Annotated[Path, typer.Option(help="folder of the checkpoint")] = Path("runs/vae"),
    steps: int = 1500,
    image_steps: Annotated[int, typer.Option(help="first steps, on single frames, which are cheap")] = 500,
    batch: int = 4,
    learning_rate: float = 3e-3,
    kl_weight: float = 1e-4,
    start_from: Annotated[Path | None, typer.Option(help="checkpoint folder of an earlier training")] = None,
    decoder_only: Annotated[bool, typer.Option(help="keep the latents, improve the pictures")] = False,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train, with a checkpoint every 100 steps from which the same command goes on."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vae = build_vae().to(device)
    if start_from is not None:
        load_checkpoint(start_from, required=True, vae=vae)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], learning_rate, (0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05 * (1 - 1e-9))
    first = load_checkpoint(output, vae=vae, optimizer=optimizer, schedule=schedule)
    before = {"steps": schedule.total_steps, "learning-rate": optimizer.param_groups[0]["max_lr"]}
    for name, value in {"steps": steps, "learning-rate": learning_rate}.items():
        if before[name] != value:  # the schedule of a checkpoint is one of so many steps
            raise typer.BadParameter(
                f"{output} is of a training with --{name} {before[name]}, not {value}; give that to go on, or begin "
                f"another one with --output FOLDER --start-from {output}"
            )
    generator = random.Random(first + 1)
    start, recent = time.perf_counter(), []
    for step in range(first, steps):
        # Long narrow crops teach the causal decoder not to drift; wide short ones teach it shapes.
        frames, side = (1, 64) if step < image_steps else generator.choice(((9, 64), (17, 48), (29, 32)))
        crops = crop_batch(generator, batch * (4 if frames == 1 else 1), frames, side)
        loss, error = vae_loss(vae, crops.to(device), kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(error.item())
        if step % 50 == 49:
            psnr = 10 * torch.log10(4 / torch.tensor(recent).mean()).item()
            print(f"step {step + 1} psnr {psnr:.2f} dB {time.perf_counter() - start:.0f} s", flush=True)
            recent.clear()
        if step % 100 == 99 or step + 1 == steps:
            save_checkpoint(output, step + 1, vae=vae, optimizer=optimizer, schedule=schedule)


if __name__ == "__main__":
    typer.run(main)

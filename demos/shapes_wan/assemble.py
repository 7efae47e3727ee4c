"""Put trained checkpoints together into the pipeline folder that ships with accel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKLWan

from demos.shapes_wan.checkpoint import load_checkpoint
from demos.shapes_wan.model import GEOMETRIES, save_pipeline
from demos.shapes_wan.shipped import EMBEDDED, shipped_autoencoder
from demos.shapes_wan.train_vae import build_vae
from demos.shapes_wan.trainer import Generator


def _autoencoder(vae: Path | None, latents: Path | None) -> AutoencoderKLWan:
    if vae is None and latents is None:
        return shipped_autoencoder()
    if vae is None or latents is None:
        raise typer.BadParameter("--vae and --latents go together; give both, or none for the shipped autoencoder")
    stats = torch.load(latents / "stats.pt")
    autoencoder = build_vae(stats["mean"].tolist(), stats["std"].tolist())
    load_checkpoint(vae, required=True, vae=autoencoder)
    return autoencoder


def main(
    stage: Annotated[Path, typer.Option(help="checkpoint folder of the last training stage")],
    vae: Annotated[Path | None, typer.Option(help="checkpoint folder of the autoencoder; default: the shipped")] = None,
    latents: Annotated[Path | None, typer.Option(help="folder of its pools, for the latents' statistics")] = None,
    output: Path = EMBEDDED,
    geometry: Annotated[str, typer.Option(help="default geometry: " + ", ".join(GEOMETRIES))] = "full",
    steps: Annotated[int, typer.Option(help="default number of denoising steps")] = 12,
    guidance_scale: float = 1.0,
    shift: float = 3.0,
) -> None:
    """Write the averaged weights, in float16, and the default call arguments."""
    autoencoder = _autoencoder(vae, latents)
    average = Generator(autoencoder.config["z_dim"])
    step = load_checkpoint(stage, required=True, average=average)
    save_pipeline(output, average.transformer, autoencoder, average.text_encoder, shift)
    frames, height, width = GEOMETRIES[geometry]
    defaults = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": steps}
    defaults |= {"guidance_scale": guidance_scale, "max_sequence_length": 24}
    (output / "generation.json").write_text(json.dumps(defaults, indent=2) + "\n")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 2**20:.1f} MB, {step} steps of the last stage")


if __name__ == "__main__":
    typer.run(main)

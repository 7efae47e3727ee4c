"""Put trained checkpoints together into the pipeline folder that ships with accel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from demos.shapes_wan.checkpoint import load_checkpoint
from demos.shapes_wan.model import GEOMETRIES, save_pipeline
from demos.shapes_wan.train_vae import build_vae
from demos.shapes_wan.trainer import Generator

EMBEDDED = Path("accel/embedded/shapes-wan")


def main(
    stage: Annotated[Path, typer.Option(help="checkpoint folder of the last training stage")],
    vae: Annotated[Path, typer.Option(help="checkpoint folder of the autoencoder")],
    latents: Annotated[Path, typer.Option(help="folder of the pools, for the latents' statistics")],
    output: Path = EMBEDDED,
    geometry: Annotated[str, typer.Option(help="default geometry: " + ", ".join(GEOMETRIES))] = "full",
    steps: Annotated[int, typer.Option(help="default number of denoising steps")] = 12,
    guidance_scale: float = 1.0,
    shift: float = 3.0,
) -> None:
    """Write the averaged weights, in float16, and the default call arguments."""
    stats = torch.load(latents / "stats.pt")
    autoencoder = build_vae(stats["mean"].tolist(), stats["std"].tolist())
    load_checkpoint(vae, required=True, vae=autoencoder)
    average = Generator(len(stats["mean"]))
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

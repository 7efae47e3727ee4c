"""Train the transformer and the text encoder of shapes-wan on pools of latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from demos.shapes_wan.pools import Pools
from demos.shapes_wan.trainer import Recipe, Trainer, learning_rate_factor


def parse_mix(mix: str) -> list[tuple[str, int]]:
    """Return (geometry, frames) of each part of a mix like "full:3,thin:33"."""
    return [(name, int(count)) for name, count in (part.split(":") for part in mix.split(","))]


def main(
    output: Annotated[Path, typer.Option(help="checkpoint folder of this stage")],
    mix: Annotated[str, typer.Option(help="GEOMETRY:FRAMES, ...: each step takes one, and so many latent frames")],
    latents: Annotated[Path, typer.Option(help="folder of the pools")] = Path("runs/latents"),
    start_from: Annotated[Path | None, typer.Option(help="checkpoint folder of the stage before")] = None,
    steps: int = 3000,
    tokens: Annotated[int, typer.Option(help="a step's tokens: as many videos as fit, at least one")] = 8448,
    learning_rate: float = 2e-3,
    decay: Annotated[float, typer.Option(help="last share of the steps, over which the rate falls")] = 0.3,
    shift: float = 5.0,
    forms: Annotated[float, typer.Option(help="share of the loss at tokens that another shape would change")] = 0.0,
    corners: Annotated[int, typer.Option(help="times that a video with a small square or triangle is drawn")] = 1,
    auxiliary: Annotated[float, typer.Option(help="weight of the auxiliary tasks of reading and locating")] = 0.3,
    drop_caption: float = 0.1,
    long_text: Annotated[float, typer.Option(help="share of steps with 128 or 512 text tokens")] = 0.0,
    ema_decay: float = 0.995,
    bfloat16: Annotated[bool, typer.Option(help="compute in bfloat16; fast from AVX512_BF16, AMX and CUDA on")] = False,
    compile_blocks: bool = False,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train, with a checkpoint every 50 steps from which the same command goes on."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts = parse_mix(mix)
    recipe = Recipe(learning_rate, shift, forms, auxiliary, long_text, ema_decay, bfloat16)
    trainer = Trainer(len(torch.load(latents / "stats.pt")["mean"]), recipe, device)
    if start_from is not None:
        trainer.start_from(start_from)
    trainer.resume(output)
    pools = {part: Pools(latents, *part, seed=trainer.done, corners=corners) for part in set(parts)}
    if compile_blocks:
        trainer.compile_blocks()
    start = time.perf_counter()
    while trainer.done < steps:
        geometry, count = trainer.random.choice(parts)
        batch = pools[geometry, count].batch(drop_caption).fitting(count, tokens)
        trainer.step(batch, count, learning_rate_factor(trainer.done, steps, decay))
        if trainer.done % 20 == 0:
            print(f"{trainer.progress()} {time.perf_counter() - start:.0f} s", flush=True)
        if trainer.done % 50 == 0 or trainer.done == steps:
            trainer.save(output)


if __name__ == "__main__":
    typer.run(main)

"""Go on training the shipped shapes-wan for some minutes on a GPU, with data that the processors draw meanwhile.

What it leaves, `checkpoint.pt`, holds the averaged weights in float16 and is smaller than 16 MiB;
`python -m demos.shapes_wan.assemble --stage FOLDER` makes the shipped folder of it.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from accel.workbench.loading import fast_bfloat16
from demos.shapes_wan.checkpoint import load_checkpoint, save_checkpoint
from demos.shapes_wan.shipped import load_shipped, shipped_autoencoder
from demos.shapes_wan.stream import Order, Stream, kind_of
from demos.shapes_wan.train import parse_mix
from demos.shapes_wan.trainer import Recipe, Trainer

SAVE_EVERY = 30.0  # seconds
LARGEST_FILE = 16 * 2**20  # bytes: what can be brought back from a lent machine
MIX = "full:3,full:3,full:5,full:5,full:5,full:33"
SMOKE_STEPS = 2


def prepare(recipe: Recipe, device: str, start_from: Path | None) -> Trainer:
    """Return a trainer with the shipped weights or, if a folder is given, with the average of its checkpoint."""
    autoencoder = shipped_autoencoder()
    trainer = Trainer(autoencoder.config["z_dim"], recipe, device)
    if start_from is None:
        load_shipped(trainer.model)
    else:
        load_checkpoint(start_from, required=True, average=trainer.model)
    trainer.average.load_state_dict(trainer.model.state_dict())
    return trainer


def save(trainer: Trainer, output: Path) -> None:
    """Write the average in float16; ValueError, and the file of before stays, if the weights are not finite."""
    if not all(weight.isfinite().all() for weight in trainer.average.parameters()):
        raise ValueError(
            f"the weights are not finite any more at step {trainer.done}; what {output / 'checkpoint.pt'} holds is "
            "older: start again with a lower --learning-rate"
        )
    save_checkpoint(output, trainer.done, average=copy.deepcopy(trainer.average).half())
    size = (output / "checkpoint.pt").stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"checkpoint.pt has {size:,} bytes, more than the {LARGEST_FILE:,} that can be brought back")


def train(
    trainer: Trainer, stream: Stream, output: Path, mix: str, tokens: int, seconds: float, decay: float,
    drop_caption: float, most_steps: int | None = None,
) -> None:  # fmt: skip
    """Train until the time is over; the rate rises for 40 steps and falls to zero over the last `decay` of the time.

    ValueError if that is too little for a step.
    """
    start = saved = time.monotonic()
    first = trainer.done
    while (spent := time.monotonic() - start) < seconds and trainer.done != most_steps:
        geometry, count = stream.choose(parse_mix(mix))
        batch = stream.batch(geometry, count, drop_caption).filling(count, tokens)
        trainer.step(batch, count, min(1.0, (trainer.done + 1) / 40, (1 - spent / seconds) / max(decay, 1e-6)))
        if trainer.done % 100 == 0 or trainer.done == most_steps:
            print(f"{trainer.progress()} {spent:.0f} s, {stream.videos} videos", flush=True)
        if time.monotonic() - saved > SAVE_EVERY:
            save(trainer, output)
            saved = time.monotonic()
    if trainer.done == first:
        raise ValueError(f"no step was made: {max(seconds, 0):.0f} seconds were left for it; give more --minutes")
    save(trainer, output)


def main(
    output: Annotated[Path, typer.Option(help="folder of checkpoint.pt")],
    minutes: Annotated[float, typer.Option(help="all of it, loading included")] = 5.0,
    start_from: Annotated[Path | None, typer.Option(help="folder of an earlier run; default: shipped weights")] = None,
    mix: Annotated[str, typer.Option(help="GEOMETRY:FRAMES, ...: each step takes one, and so many frames")] = MIX,
    tokens: Annotated[
        int, typer.Option(help="a step's tokens: videos are repeated, with other noise, to fill it")
    ] = 67584,
    learning_rate: float = 1e-3,
    decay: Annotated[float, typer.Option(help="last share of the time, over which the rate falls")] = 0.4,
    shift: float = 3.0,
    forms: Annotated[float, typer.Option(help="share of the loss at tokens that another shape would change")] = 0.6,
    corners: Annotated[int, typer.Option(help="times that videos with small squares or triangles are drawn")] = 3,
    drop_caption: float = 0.1,
    ema_decay: float = 0.998,
    compile_blocks: bool = False,
    workers: Annotated[int | None, typer.Option(help="drawing processes; default: all processors but one")] = None,
    seed: Annotated[int, typer.Option(help="of the videos; take another one when going on")] = 0,
    device: str = "cuda",
    smoke: Annotated[bool, typer.Option(help="a few steps on tiny videos on the CPU: does it all run?")] = False,
) -> None:
    """Train, in bfloat16 where that is fast, writing the averaged weights twice a minute."""
    if (output / "checkpoint.pt").exists() and (start_from is None or start_from.resolve() != output.resolve()):
        raise typer.BadParameter(
            f"{output} holds a training already; give --start-from {output} to go on from it, or another --output"
        )
    end = time.monotonic() + 60 * minutes
    if smoke:
        device, mix, tokens, workers = "cpu", "coarse:3,coarse:4", 512, 1
    workers = workers or max(1, (os.cpu_count() or 2) - 1)
    order = Order([kind_of(*part) for part in parse_mix(mix)], *((2, 2) if smoke else (16, 8)), corners, forms, seed)
    stream = Stream(order, shipped_autoencoder(device), workers)  # begins to draw while the rest is made
    try:
        torch.manual_seed(seed)
        recipe = Recipe(learning_rate, shift, forms, ema_decay=ema_decay, bfloat16=fast_bfloat16(torch.device(device)))
        trainer = prepare(recipe, device, start_from)
        if compile_blocks:
            trainer.compile_blocks()
        seconds = end - time.monotonic()
        train(trainer, stream, output, mix, tokens, seconds, decay, drop_caption, SMOKE_STEPS if smoke else None)
    finally:
        stream.close()
    print(f"{output / 'checkpoint.pt'}: {trainer.done} steps, {stream.videos} videos drawn")


if __name__ == "__main__":
    typer.run(main)

"""Train routers for shapes-wan on fresh videos: which blocks run at a timestep, and how wide their MLPs are.

What it leaves is a folder for `accel.load_routers`, and `checkpoint.pt`, from which `--resume` goes on.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from accel.models.adapters import adapter_for
from accel.routing.folder import ROUTERS
from accel.routing.recipe import Recipe, learning_rate_factor
from accel.routing.training import CHECKPOINT, RouterTrainer
from accel.workbench.loading import fast_bfloat16
from demos.shapes_wan.forms import form_weights
from demos.shapes_wan.model import build_tokenizer, embed_captions
from demos.shapes_wan.pools import Batch, Pools
from demos.shapes_wan.shipped import EMBEDDED, shipped_autoencoder, shipped_text_encoder, shipped_transformer
from demos.shapes_wan.stream import Order, Stream, kind_of
from demos.shapes_wan.subset import at_frames, choose_frames
from demos.shapes_wan.train import parse_mix
from demos.shapes_wan.trainer import SHORT_TEXT

SAVE_EVERY = 60.0  # seconds
MIX = "full:5,full:5,full:5,full:33"
SMOKE_STEPS = 2
FRESH = 2  # steps for which new videos are encoded once
# (geometry, frames) -> a batch of videos of which so many frames are taken
Batches = Callable[[tuple[str, int]], Batch]


def train(
    trainer: RouterTrainer, batches: Batches, choose: Callable[[], tuple[str, int]],
    embed: Callable[[list[str]], Tensor], output: Path, tokens: int, forms: float, seconds: float,
    most_steps: int | None = None,
) -> None:  # fmt: skip
    """Train until the time is over, in steps of so many tokens, saved about once a minute; ValueError without one."""
    start = saved = time.monotonic()
    first = trainer.done
    ropes = {id(each.rope): each.rope for each in (trainer.transformer, trainer.teacher) if each is not None}
    while (spent := time.monotonic() - start) < seconds and trainer.done - first != most_steps:
        part = choose()
        batch = batches(part).filling(part[1], tokens)
        picked = choose_frames(len(batch.frames), part[1], random.Random(trainer.done))
        weights = _weights(batch, picked, forms)
        with ExitStack() as stack:
            for rope in ropes.values():  # one, where a frozen transformer teaches itself
                stack.enter_context(at_frames(rope, batch.length, batch.frames[picked]))
            factor = learning_rate_factor(spent / seconds)
            trainer.step(batch.latents[:, :, picked].float(), embed(batch.captions), factor, weights)
        if trainer.done % 10 == 0 or trainer.done - first == most_steps:
            print(f"{trainer.progress()} {spent:.0f} s", flush=True)
        if time.monotonic() - saved > SAVE_EVERY:
            trainer.save(output, torch.float16)
            saved = time.monotonic()
    if trainer.done == first:
        raise ValueError(f"no step was made: {max(seconds, 0):.0f} seconds were left for it; give more --minutes")
    trainer.save(output, torch.float16)


def _weights(batch: Batch, picked: Tensor, forms: float) -> Tensor:
    """Return the weights of the loss: those that were drawn with the videos, else those of their captions."""
    if batch.weights is not None:
        return batch.weights[:, :, picked]
    times = batch.frames[picked] / (batch.length - 1)
    return form_weights(batch.captions, times, *batch.latents.shape[3:], share=forms)


def make_embed(model: Path, device: str) -> Callable[[list[str]], Tensor]:
    """Return what embeds captions with a model's text encoder."""
    tokenizer, encoder = build_tokenizer(), shipped_text_encoder(model).to(device).eval().requires_grad_(False)
    return lambda captions: embed_captions(tokenizer, encoder, captions, SHORT_TEXT)


def main(
    output: Annotated[Path, typer.Option(help="folder of the routers")],
    model: Annotated[Path, typer.Option(help="pipeline folder to begin with; default: the shipped one")] = EMBEDDED,
    minutes: Annotated[float, typer.Option(help="all of it, loading included")] = 40.0,
    rate: Annotated[float, typer.Option(help="share of the blocks to run at the end of denoising")] = 0.6,
    low_rate: Annotated[float | None, typer.Option(help="the same at its start; default: the rate")] = None,
    width_rate: Annotated[float | None, typer.Option(help="mean width of the MLPs that run; default: whole")] = None,
    joint: Annotated[float, typer.Option(help="learning rate of the transformer; 0 leaves it as it is")] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="of the routers")] = 1e-3,
    alone: Annotated[int, typer.Option(help="steps until the transformer learns too")] = 50,
    frozen: Annotated[str, typer.Option(help="words, with commas; weights with one in their names stay")] = "",
    distillation: Annotated[float, typer.Option(help="share of the dense model in the velocity to learn")] = 1.0,
    weight: Annotated[float, typer.Option(help="of the rates, beside the error of the velocity")] = 5.0,
    rest: Annotated[str, typer.Option(help="what blocks do that do not run: skip, or reuse what they added")] = "skip",
    mix: Annotated[str, typer.Option(help="GEOMETRY:FRAMES, ...: each step takes one, and so many frames")] = MIX,
    tokens: Annotated[int, typer.Option(help="a step's tokens: videos are repeated to fill it")] = 8448,
    latents: Annotated[Path | None, typer.Option(help="folder of pools; default: videos are drawn meanwhile")] = None,
    shift: float = 3.0,
    forms: Annotated[float, typer.Option(help="share of the loss at tokens that another shape would change")] = 0.6,
    corners: Annotated[int, typer.Option(help="times that videos with small squares or triangles are drawn")] = 3,
    drop_caption: float = 0.1,
    workers: Annotated[int, typer.Option(help="drawing processes")] = 1,
    bfloat16: Annotated[bool | None, typer.Option(help="compute in bfloat16; default: where it is fast")] = None,
    start_from: Annotated[Path | None, typer.Option(help="folder of routers to begin with")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in the output folder")] = False,
    threads: int = 2,
    seed: int = 0,
    device: str = "cpu",
    smoke: Annotated[bool, typer.Option(help="a few steps on tiny videos on the CPU: does it all run?")] = False,
) -> None:
    """Train routers, and the transformer with them if --joint is above 0, and save them once a minute."""
    if not resume and (output / CHECKPOINT).exists():
        raise typer.BadParameter(f"{output} holds a training already; give --resume to go on, or another --output")
    if not resume and (output / ROUTERS).exists():
        raise typer.BadParameter(
            f"{output} holds routers already, which would be replaced; move {ROUTERS} away, or give another --output"
        )
    end = time.monotonic() + 60 * minutes
    torch.set_num_threads(threads)
    if smoke:
        device, mix, tokens = "cpu", "coarse:3,coarse:4", 512
    parts = parse_mix(mix)
    words = tuple(word.strip() for word in frozen.split(",") if word.strip())
    recipe = Recipe(
        rate, low_rate, width_rate, weight, learning_rate, joint, alone, words, distillation, shift,
        rest=rest, seed=seed,
    )  # fmt: skip
    transformer = shipped_transformer(model)
    bfloat16 = fast_bfloat16(torch.device(device)) if bfloat16 is None else bfloat16
    trainer = RouterTrainer(transformer, adapter_for(transformer), recipe, device, bfloat16)
    trainer.setting = {"model": model.name, "mix": mix}
    if start_from is not None:
        trainer.start_from(start_from)
    if resume:
        trainer.resume(output)
    stream = None
    if latents is None:
        videos = (2, 1) if device == "cpu" else (16, 8)  # a shard: encoding is what takes long without a GPU
        order = Order([kind_of(*part) for part in parts], *videos, corners, forms, trainer.done + seed)
        stream = Stream(order, shipped_autoencoder(device), workers)
    try:
        batches, choose = _source(stream, latents, parts, drop_caption, corners, trainer.done + seed)
        seconds = end - time.monotonic()
        train(
            trainer,
            batches,
            choose,
            make_embed(model, device),
            output,
            tokens,
            forms,
            seconds,
            SMOKE_STEPS if smoke else None,
        )
    finally:
        if stream is not None:
            stream.close()
    print(f"{output}: routers of {trainer.done} steps; {CHECKPOINT} to go on from")


def _source(
    stream: Stream | None,
    latents: Path | None,
    parts: list[tuple[str, int]],
    drop_caption: float,
    corners: int,
    seed: int,
) -> tuple[Batches, Callable[[], tuple[str, int]]]:
    """Return what gives batches, and what chooses their kind: of drawn videos, or of pools of latents."""
    generator = random.Random(seed)
    if stream is not None:
        asked = itertools.count()

        def choose() -> tuple[str, int]:
            # Encoding takes longer than a step where there is no GPU: most steps take videos of before.
            if next(asked) % FRESH == 0 or not seen:
                seen.append(stream.choose(parts))
                return seen[-1]
            return generator.choice(seen)

        seen: list[tuple[str, int]] = []
        return (lambda part: stream.batch(*part, drop_caption)), choose
    assert latents is not None
    pools = {part: Pools(latents, *part, seed=seed, corners=corners) for part in set(parts)}
    return (lambda part: pools[part].batch(drop_caption)), (lambda: generator.choice(parts))


if __name__ == "__main__":
    typer.run(main)

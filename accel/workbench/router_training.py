"""Routers for a pipeline, trained on a folder of videos with captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from accel.errors import InputError
from accel.files import unwritable
from accel.routing.checkpoint import CHECKPOINT, DATA, read_checkpoint
from accel.routing.folder import ROUTERS
from accel.routing.recipe import Recipe, learning_rate_factor
from accel.routing.training import RouterTrainer
from accel.workbench.captioned_videos import Samples, find_videos, fingerprint, samples_of
from accel.workbench.loading import LoadedPipeline

LATENTS = "latents.safetensors"
SAID = 20  # steps whose figures are averaged and said
CHOICE = 1  # the stream of random numbers that chooses videos


def check_trainable(loaded: LoadedPipeline) -> None:
    """Raise InputError for pipelines that routers cannot be trained for."""
    if len(loaded.transformers) != 1:
        raise InputError(
            f"{loaded.name!r} has two transformers, and routers are trained for one; "
            "give a pipeline with one, like Wan 2.1 or Wan 2.2 TI2V"
        )
    adapter, config = loaded.adapter, loaded.transformers[0].config
    if adapter.blocks is None or adapter.channels is None or adapter.time_embedding is None:
        raise InputError(f"{loaded.name!r} has no blocks that routers are known to fit; give a Wan pipeline")
    if config.out_channels not in (None, config.in_channels):
        raise InputError(
            f"{loaded.name!r} takes {config.in_channels} channels and gives {config.out_channels}, so that it makes "
            "videos from something else, and routers are trained on text alone; give a text-to-video pipeline"
        )
    if loaded.dtype == torch.float16:
        raise InputError("dtype float16 has too small a range for training; give bfloat16 or float32")


def train_routers(
    loaded: LoadedPipeline,
    data: Path,
    output: Path,
    recipe: Recipe,
    steps: int,
    size: dict[str, int],
    *,
    batch: int = 1,
    every: int = 100,
    drop_caption: float = 0.1,
    resume: bool = False,
    report: Callable[[int, str], None] = lambda step, message: None,
) -> RouterTrainer:
    """Train and return routers, saved every so many steps; `report` is called with the steps made and what was done.

    With `resume` the checkpoint in `output` is gone on from. InputError on data, size or output that cannot be used.
    """
    check_trainable(loaded)
    loaded.check(size["frames"], size["height"], size["width"], 1)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(output, error) from error
    captions = find_videos(data)
    setting = {
        "model": Path(loaded.name).name, "batch": batch, "drop_caption": drop_caption,
        "videos": len(captions), **size, DATA: fingerprint(captions),
    }  # fmt: skip
    _check_output(output, recipe, setting, resume)
    bfloat16, transformer = loaded.dtype == torch.bfloat16, loaded.transformers[0]
    samples = samples_of(loaded, data, size, output / LATENTS, lambda message: report(0, message))
    for part in (loaded.pipeline.vae, loaded.pipeline.text_encoder):  # they have done their work
        part.to("cpu")
    if recipe.backbone_rate > 0:
        transformer.float()  # bfloat16 would lose small steps
    trainer = RouterTrainer(transformer, loaded.adapter, recipe, str(loaded.device), bfloat16)
    trainer.setting = setting
    if resume:
        trainer.resume(output)
    message = "training"
    while trainer.done < steps:
        latents, text = _batch(trainer, samples, batch, drop_caption)
        trainer.step(latents, text, learning_rate_factor(trainer.done / steps))
        if trainer.done % every == 0 or trainer.done == steps:
            trainer.save(output)
        if trainer.done % SAID == 0 or trainer.done == steps:
            message = trainer.progress()
        report(trainer.done, message)
    return trainer


def _check_output(output: Path, recipe: Recipe, setting: dict[str, Any], resume: bool) -> None:
    """Raise InputError if a folder holds what must not be lost, or a training that is not to be gone on with so."""
    if resume and not (output / CHECKPOINT).exists():
        raise InputError(f"{str(output)!r} holds no {CHECKPOINT} to go on from; leave --resume out, or give its folder")
    if resume:
        read_checkpoint(output, recipe, setting)  # before videos are encoded, which may take hours
    elif (output / CHECKPOINT).exists():
        raise InputError(f"{str(output)!r} holds a training already; give --resume to go on, or another folder")
    elif (output / ROUTERS).exists():
        raise InputError(
            f"{str(output)!r} holds routers already, which would be replaced; "
            f"move {ROUTERS} away, or give another folder"
        )


def _batch(
    trainer: RouterTrainer, samples: Samples, batch: int, drop_caption: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents and text of the next step's videos, some without their captions, for guidance."""
    random = trainer.random(CHOICE)
    chosen = torch.randint(len(samples.latents), (batch,), generator=random)
    drops = torch.rand(batch, generator=random) < drop_caption
    text = torch.where(drops[:, None, None], samples.empty, samples.text[chosen])
    return samples.latents[chosen], text

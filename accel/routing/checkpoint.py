"""What a training of routers is gone on from, and whether it is of the same recipe and setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from accel.errors import InputError
from accel.routing.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
DATA = "data"  # the part of a setting that tells what was learnt from


def read_checkpoint(folder: Path, recipe: Recipe, setting: dict[str, Any]) -> dict[str, Any]:
    """Return what `checkpoint.pt` holds, in memory only where it is used.

    InputError if there is none, or it is of another recipe or setting.
    """
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        made_by = state["recipe"]
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{str(path)!r} cannot be gone on from: {reason}; start without resuming") from error
    # Older checkpoints know neither the setting nor every option.
    before = dataclasses.asdict(Recipe()) | setting | made_by | state.get("setting", {})
    for name, value in (dataclasses.asdict(recipe) | setting).items():
        if before[name] != value and name == DATA:
            raise InputError(
                f"{str(path)!r} is of a training on other videos or captions; give those, or another folder"
            )
        if before[name] != value:
            raise InputError(f"{str(path)!r} is of a training with {name} {before[name]}, not {value}; give that")
    return state

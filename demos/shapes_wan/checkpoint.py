"""Checkpoints that survive being stopped while they are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from accel.files import replacing


def save_checkpoint(folder: Path, step: int, **parts: Any) -> None:
    """Write the `state_dict` of every part to `folder/checkpoint.pt`, replacing the old one at once."""
    whole = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, whole)
    with replacing(folder / "checkpoint.pt") as temporary:
        temporary.write_bytes(whole.getbuffer())


def load_checkpoint(folder: Path, required: bool = False, **parts: Any) -> int:
    """Restore every part from `folder/checkpoint.pt` and return its step; 0, or an error, when there is none."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        if required:
            raise FileNotFoundError(f"{path} does not exist; give the --output folder of an earlier training")
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]

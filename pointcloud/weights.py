"""Networks in files: weights and configuration as safetensors, and checkpoints from which training goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pointcloud.files import replacing

CHECKPOINT = "checkpoint.pt"


def weight_bytes(network: nn.Module, key: str, config: str) -> bytes:
    """Return the content of a safetensors file: the state of a network, and its configuration as text under `key`."""
    return save({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, {key: config})


def write_weights(path: str | Path, network: nn.Module, key: str, config: str) -> None:
    """Write `weight_bytes`, replacing an old file at once."""
    with replacing(path) as temporary:
        temporary.write_bytes(weight_bytes(network, key, config))


def read_weights(path: str | Path, key: str, kind: str, writer: str) -> tuple[str, dict[str, Tensor]]:
    """Return configuration and state of a file of a `kind` of network that `writer` wrote.

    FileNotFoundError if there is none; ValueError if it is no safetensors file, or has no configuration under `key`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .safetensors file that {writer} wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error})") from error
    if key not in metadata:
        raise ValueError(
            f"{path} is of another network: it has no {kind} configuration; give a file that {writer} wrote"
        )
    return metadata[key], state


def fill(network: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Put the state of a file into the network of its configuration; ValueError if it does not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} holds weights of another network than its configuration; give another") from error


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt` into a folder, replacing an old one at once."""
    whole = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save(state, whole)
    with replacing(folder / CHECKPOINT) as temporary:
        temporary.write_bytes(whole.getbuffer())


def read_checkpoint(folder: Path, device: str, asked: dict[str, Any], what: str, **parts: Any) -> int:
    """Restore the parts from the checkpoint of a folder and return its step, 0 without one.

    ValueError if it is broken, or `what` it is of differs in what is `asked` of it.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if all(state.get(name) == value for name, value in asked.items()):
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return state["step"]
    except Exception as error:  # a broken file leads torch anywhere
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be gone on from: {reason}; give another output folder") from error
    raise ValueError(f"{path} is of {what}; give another output folder")

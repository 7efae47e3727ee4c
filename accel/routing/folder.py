"""Routers as a folder: `config.json`, `routers.safetensors` and, where they were tuned too, the backbone's weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from accel.errors import InputError
from accel.files import replacing
from accel.routing.router import Routers, RoutersConfig

CONFIG, ROUTERS, BACKBONE = "config.json", "routers.safetensors", "backbone.safetensors"
NEWER = "rest"  # not in the first folders, which all skip
ADVICE = "give a folder that accel train-router or save_routers wrote"


def save_routers(routers: Routers, folder: Path, backbone: Mapping[str, Tensor] | None = None) -> None:
    """Write routers, and tuned weights of the transformer by their names in it; each file is whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.dumps(dataclasses.asdict(routers.config), indent=1) + "\n"
    _write(folder / CONFIG, lambda path: path.write_text(fields))
    if backbone is None:
        (folder / BACKBONE).unlink(missing_ok=True)
    else:
        _write(folder / BACKBONE, lambda path: save_file(_plain(backbone), path))
    _write(folder / ROUTERS, lambda path: save_file(_plain(routers.state_dict()), path))


def read_routers(folder: Path) -> tuple[Routers, dict[str, Tensor]]:
    """Return routers and the tuned weights, if there are any; InputError on whatever is no such folder.

    Nothing but JSON and safetensors is read.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{str(folder)!r} holds no routers: it has no {CONFIG}; {ADVICE}")
    config, state = _config(folder / CONFIG), _tensors(folder / ROUTERS)
    expected = _expected(folder / CONFIG, config, len(state))
    for name in sorted({*state, *expected}):
        if name not in state or name not in expected or state[name].shape != expected[name].shape:
            said = "is missing" if name not in state else f"is {tuple(state[name].shape)}"
            wanted = f"is {tuple(expected[name].shape)}" if name in expected else "is not"
            raise InputError(
                f"{str(folder / ROUTERS)!r} is foreign: {name} {said}, in its {CONFIG} it {wanted}; {ADVICE}"
            )
    routers = Routers(config)
    routers.load_state_dict(state)
    has_backbone = (folder / BACKBONE).exists()
    return routers.eval().requires_grad_(False), _tensors(folder / BACKBONE) if has_backbone else {}


def fingerprint(routers: Routers, backbone: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a configuration and all weights, wherever they were read."""
    made = hashlib.sha256(repr(routers.config).encode())
    for part in (routers.state_dict(), backbone):
        for name, tensor in sorted(part.items()):
            made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            made.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def _expected(path: Path, config: RoutersConfig, tensors: int) -> dict[str, Tensor]:
    """Return the tensors of a configuration, which may say anything, without memory for them."""
    if config.count > tensors:
        raise InputError(f"{str(path)!r} is of {config.count} routers, and there are {tensors} tensors; {ADVICE}")
    try:
        with torch.device("meta"):
            return Routers(config).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{str(path)!r} has sizes that no tensor can have ({reason}); {ADVICE}") from error


def _config(path: Path) -> RoutersConfig:
    try:
        given = json.loads(path.read_text())
        names = [field.name for field in dataclasses.fields(RoutersConfig)]
        if not isinstance(given, dict) or {*given, NEWER} != {*names}:
            raise ValueError(f"it must hold {', '.join(names)}")
        widths = tuple(float(width) for width in given["widths"])
        return RoutersConfig(**{**given, "model": str(given["model"]), "widths": widths})
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no configuration of routers: {error}; {ADVICE}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; InputError if it is no safetensors file, or one of them is not finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} is no safetensors file: {error}; {ADVICE}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{name} in {str(path)!r} holds NaN, Inf or no numbers with a fraction; {ADVICE}")
    return tensors


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    with replacing(path) as temporary:
        write(temporary)

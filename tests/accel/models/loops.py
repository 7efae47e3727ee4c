"""Denoising loops over the tiny transformers of all families, as pipelines run them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.accel.models.tiny_models import TINY, prepared

STEPS = 4


class Scheduler:
    """What a pipeline's scheduler tells: its timesteps, new ones for every generation."""

    def __init__(self) -> None:
        self.timesteps = torch.empty(0)


class Loop:
    """A pipeline as far as accel sees one: a tiny transformer, a scheduler, and a loop without guidance."""

    def __init__(self, name: str):
        self.name, self.scheduler = name, Scheduler()
        self.transformer: Any = TINY[name].build()
        self.inputs = prepared(name, self.transformer)
        self.timestep = "t" if "t" in self.inputs else "timestep"

    def __call__(self, still: bool = False, **changed: Any) -> list[Tensor]:
        """Return what the transformer says in each step; with `still` all steps see nearly the same."""
        inputs = self.inputs | changed
        first = float(inputs[self.timestep].max())
        size = 1e-6 if still else 1 / STEPS
        steps = [first * (1 - size * step) for step in range(STEPS)]
        self.scheduler.timesteps = torch.tensor(steps)
        outputs, latents = [], inputs.get("hidden_states")
        with torch.no_grad():
            for number, step in enumerate(steps):
                inputs[self.timestep] = torch.full_like(inputs[self.timestep], step)
                if isinstance(latents, Tensor) and not still:
                    inputs["hidden_states"] = latents * (1 - 0.1 * number)
                output = self.transformer(**inputs, return_dict=False)[0]
                outputs.append(output[0] if isinstance(output, (list, tuple)) else output)
        return outputs


@functools.cache
def stock_of(name: str, still: bool = False) -> list[Tensor]:
    """Return what a loop says with nothing attached."""
    return _stock_loop(name)(still)


@functools.lru_cache(maxsize=1)
def _stock_loop(name: str) -> Loop:
    return Loop(name)


def processors(transformer: nn.Module) -> dict[str, Any]:
    """Return all attention processors of a transformer."""
    return {name: module.processor for name, module in transformer.named_modules() if hasattr(module, "processor")}


def difference(ours: list[Tensor], stock: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, stock, strict=True))


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Give diffusers' Cosmos the one function of torchvision that it calls, where that is not installed."""
    from types import SimpleNamespace

    from diffusers.models.transformers import transformer_cosmos

    if hasattr(transformer_cosmos, "transforms"):
        yield
        return

    def resize(x: Tensor, size: Any, **options: Any) -> Tensor:
        return nn.functional.interpolate(x, tuple(size))

    stub: Any = SimpleNamespace(functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST=0))
    transformer_cosmos.transforms = stub  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del transformer_cosmos.transforms  # type: ignore[attr-defined]

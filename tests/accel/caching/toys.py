"""A transformer of a few small blocks in float64, and loops of denoising over it, with a policy or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from accel.attention.call import Geometry, Progress
from accel.caching.hook import install_cache, remove_cache
from accel.caching.policy import Policy
from accel.caching.resting import Resting
from accel.models.adapters.adapter import Adapter
from accel.models.denoising import Denoising

DEPTH, CHANNELS, TOKENS = 6, 4, 5


class Block(nn.Module):
    """Adds something that depends on tokens and text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, dtype=torch.float64) / 2)

    def forward(self, hidden_states: Tensor, text: Tensor) -> Tensor:
        return hidden_states + torch.tanh(hidden_states @ self.weight + text) / 2


class Toy(nn.Module):
    """Latents (batch channels tokens) and one number of text a sample."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(out_channels=CHANNELS)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.clock = nn.Identity()

    def embed(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def embed_time(self, latents: Tensor) -> Tensor:
        """Return what stands for a timestep embedding, different at every step."""
        return self.clock(latents.mean(-1))

    def head(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.transpose(1, 2) * 0.7

    def forward(self, hidden_states: Tensor, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        x = self.embed(hidden_states)
        self.embed_time(hidden_states)
        for block in self.blocks:
            x = block(x, text)
        return (self.head(x),)


TOY = Adapter(
    classes=("Toy",),
    self_attention="no attention",
    geometry=lambda toy, args, kwargs: Geometry(1, 1, TOKENS),
    sizes=lambda pipeline: {},
    grid=lambda pipeline, frames, height, width: (1, 1, TOKENS),
    blocks=lambda toy: list(toy.blocks),
    latents=lambda toy, args, kwargs: args[0],
    channels=lambda toy: CHANNELS,
    time_embedding=lambda toy: toy.clock,
)


@dataclass
class Loop:
    """What goes into a loop of denoising: latents of each step, and the guidance branches in their order, with text."""

    latents: list[Tensor]
    text: dict[str, Tensor]

    @property
    def steps(self) -> int:
        return len(self.latents)

    def sample(self, row: int) -> Loop:
        """Return one sample of the batch by itself."""
        return Loop(
            [x[row : row + 1] for x in self.latents], {key: text[row : row + 1] for key, text in self.text.items()}
        )


@dataclass
class Played:
    """What a loop gave: an output and the kinds of all blocks, for each step and branch."""

    outputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    kinds: dict[tuple[int, str, int], str] = field(default_factory=dict)


def make_loop(seed: int, batch: int = 1, steps: int = 14, branches: Sequence[str] = ("cond", "uncond")) -> Loop:
    """Return a loop whose samples move by steps of random size."""
    random = torch.Generator().manual_seed(seed)
    moves = torch.randn(steps, batch, CHANNELS, TOKENS, generator=random, dtype=torch.float64)
    sizes = torch.rand(steps, batch, 1, 1, generator=random, dtype=torch.float64) ** 3 / 4
    sizes[0] = 1
    texts = torch.randn(len(branches), batch, 1, 1, generator=random, dtype=torch.float64) / 4
    return Loop(list((moves * sizes).cumsum(0)), dict(zip(branches, texts, strict=True)))


def play(toy: Toy, policy: Policy, loop: Loop, denoising: Denoising | None = None, first: int = 0) -> Played:
    """Run a loop under a policy, as a pipeline does, from its `first` step on."""
    denoising = denoising or Denoising()
    resting, played = Resting(policy, toy, TOY, denoising), Played()
    install_cache(toy, resting)
    schedule: Any = object()
    with torch.no_grad():
        for step, latents in list(enumerate(loop.latents))[first:]:
            for branch, text in loop.text.items():
                progress = Progress(step, loop.steps, branch, first=first)
                denoising.begin_call(Geometry(1, 1, TOKENS), progress, schedule, True)
                (played.outputs[step, branch],) = toy(latents, text)
    for record in denoising.current.blocks:
        for block in record.blocks:
            played.kinds[record.step, f"{record.branch} {record.sample or 0}", block] = record.kind
    denoising.end_generation()
    remove_cache(toy)
    return played

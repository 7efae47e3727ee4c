"""Routers of Elastic Diffusion Transformer (E-DiT, arXiv 2602.13993, section 3): one small network for each block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from accel.errors import InputError

VARIANTS = ("published", "shared")
WIDTHS = (0.25, 0.5, 0.75, 1.0)
RESTS = ("skip", "reuse")
ON = math.log(0.7 / 0.3)  # a gate of 0.7 at first
FULL = 2.0  # for the full width at first, 0 for the others
NEAR_ZERO = 1e-3  # deviation of the heads' weights at first
EPSILON = 1e-6


@dataclass(frozen=True)
class RoutersConfig:
    """The transformer's class, depth and channels; hidden neurons and accepted widths; how the timestep comes in.

    The variant "published" modulates by a layer of 2 channels^2 weights in each block, "shared" by one small network
    for all of them with a shift and scale of each block's own. Widths of (1,) leave MLPs whole. `rest` is what happens
    without a block: "skip" adds nothing, as published. With "reuse" there is one router, before the first block, which
    says how often all of them have to run; in between they add what they added. That is ours: blocks that rest each at
    steps of their own are a mixture of old and new, further from dense than all at once.
    """

    model: str
    depth: int
    channels: int
    hidden: int = 128
    widths: tuple[float, ...] = WIDTHS
    variant: str = "shared"
    rest: str = "skip"

    def __post_init__(self) -> None:
        for name in ("depth", "channels", "hidden"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} of routers is {value!r}; give a whole number, at least 1")
        if self.variant not in VARIANTS:
            raise InputError(f"variant of routers is {self.variant!r}; accepted: {', '.join(VARIANTS)}")
        if self.rest not in RESTS:
            raise InputError(f"rest of routers is {self.rest!r}; accepted: {', '.join(RESTS)}")
        if self.rest == "reuse" and tuple(self.widths) != (1,):
            raise InputError(f"rest of routers is 'reuse', which leaves MLPs whole, and widths are {self.widths}")
        rising = all(a < b for a, b in zip((0.0, *self.widths), self.widths, strict=False))
        if not self.widths or not rising or self.widths[-1] != 1:
            raise InputError(f"widths of routers are {self.widths}; give rising shares above 0, the last one 1")

    @property
    def count(self) -> int:
        """The number of routers."""
        return 1 if self.rest == "reuse" else self.depth


class Router(nn.Module):
    """Looks at a block's input and the timestep; a gate says whether the block runs, widths how much of its MLP.

    Without `modulated` the modulation comes from outside, and this one has a shift and scale to add to it. The release
    makes a third vector beside these two that nothing uses; it is left out. At first the gate is 0.7 and the width full
    whatever goes in, so that the elastic network starts as the dense one.
    """

    def __init__(self, channels: int, hidden: int, widths: int, modulated: bool):
        super().__init__()
        self.modulation = nn.Linear(channels, 2 * channels) if modulated else None
        self.table = None if modulated else nn.Parameter(torch.zeros(2 * channels))
        self.trunk = nn.Linear(channels, hidden)
        self.gate = nn.Linear(hidden, 1)
        self.width = nn.Linear(hidden, widths)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        nn.init.kaiming_normal_(self.trunk.weight, nonlinearity="relu")
        nn.init.zeros_(self.trunk.bias)
        nn.init.normal_(self.gate.weight, std=NEAR_ZERO)
        nn.init.constant_(self.gate.bias, ON)
        nn.init.normal_(self.width.weight, std=NEAR_ZERO)
        nn.init.zeros_(self.width.bias)
        nn.init.constant_(self.width.bias[-1:], FULL)

    def forward(
        self, x: Float[Tensor, "b tokens channels"], time: Float[Tensor, "b channels"], shared: Tensor | None = None
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b widths"]]:
        """Return the logits of gate and widths, means over all tokens; `shared` is the modulation of all blocks."""
        if self.modulation is not None:
            modulation = self.modulation(functional.silu(time))
        else:
            assert shared is not None and self.table is not None
            modulation = shared + self.table
        shift, scale = modulation.chunk(2, -1)
        # Modulated here are the trunk's weights and not the tokens, which are many more.
        weight = self.trunk.weight * (1 + scale)[:, None]
        bias = functional.linear(shift, self.trunk.weight, self.trunk.bias)
        normed = functional.layer_norm(x, x.shape[-1:], eps=EPSILON)
        hidden = torch.baddbmm(bias[:, None].to(normed.dtype), normed, weight.mT.to(normed.dtype)).relu()
        with torch.autocast(x.device.type, enabled=False):
            # The heads are linear: the mean of what they say is what they say of the mean.
            pooled = hidden.mean(1, dtype=torch.promote_types(hidden.dtype, torch.float32)).to(self.gate.weight.dtype)
            return self.gate(pooled)[:, 0], self.width(pooled)


class Routers(nn.Module):
    """The routers of one transformer."""

    def __init__(self, config: RoutersConfig):
        super().__init__()
        self.config = config
        channels, hidden, modulated = config.channels, config.hidden, config.variant == "published"
        self.modulation = None if modulated else _modulation(channels, hidden)
        self.blocks = nn.ModuleList(
            Router(channels, hidden, len(config.widths), modulated) for _ in range(config.count)
        )

    def forward(
        self, index: int, x: Float[Tensor, "b tokens channels"], time: Float[Tensor, "b channels"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b widths"]]:
        """Return the logits of gate and widths of a block, from what goes into it and the timestep embedding."""
        time = time.to(self.dtype)
        shared = None if self.modulation is None else self.modulation(functional.silu(time))
        router: Any = self.blocks[index]
        return router(x, time, shared)

    @torch.no_grad()
    def read(
        self, index: int, x: Float[Tensor, "1 tokens channels"], time: Float[Tensor, "1 channels"]
    ) -> tuple[float, float]:
        """Return the gate's probability and the likeliest width of one sample; waits for the device once."""
        gate, widths = self(index, x, time)
        probability, number = torch.stack([gate[0].sigmoid(), widths[0].argmax().to(gate.dtype)]).tolist()
        return probability, self.config.widths[int(number)]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return next(self.parameters()).dtype


def _modulation(channels: int, hidden: int) -> nn.Sequential:
    """Return a network from timestep embedding to shift and scale, through as few neurons as a trunk has.

    The embedding is normalised: in trained models it is small, and hardly differs from one timestep to another.
    """
    last = nn.Linear(hidden, 2 * channels)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    norm = nn.LayerNorm(channels, eps=EPSILON, elementwise_affine=False)
    return nn.Sequential(norm, nn.Linear(channels, hidden), nn.SiLU(), last)

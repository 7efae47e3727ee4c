"""Routers for tiny pipelines and for toys: new ones, and such as decide all kinds of things."""

from __future__ import annotations

import torch
from torch import nn

from accel.routing.router import WIDTHS, Router, Routers, RoutersConfig
from tests.accel.caching.toys import CHANNELS, DEPTH

WAN = RoutersConfig("WanTransformer3DModel", depth=2, channels=64, hidden=16)


def wan_routers(variant: str = "shared", widths: tuple[float, ...] = WIDTHS, varied: int | None = None) -> Routers:
    """Return routers for `tests.accel.wan_models`; those `varied` by a seed skip and narrow as content has it."""
    torch.manual_seed(0)
    routers = Routers(RoutersConfig(WAN.model, WAN.depth, WAN.channels, WAN.hidden, widths, variant))
    return routers if varied is None else vary(routers, varied)


def toy_routers(varied: int | None = None, rest: str = "skip") -> Routers:
    """Return routers for a toy, without widths, in float64."""
    torch.manual_seed(0)
    routers = Routers(RoutersConfig("Toy", DEPTH, CHANNELS, 8, (1.0,), rest=rest)).double()
    return routers if varied is None else vary(routers, varied)


@torch.no_grad()
def vary(routers: Routers, seed: int, spread: float = 1.0) -> Routers:
    """Return routers whose answers depend on tokens and timestep."""
    torch.manual_seed(seed)
    for parameter in routers.parameters():
        parameter.add_(torch.randn_like(parameter) / max(parameter.shape) ** 0.5)
    for router in routers.blocks:
        assert isinstance(router, Router)
        for head in (router.gate, router.width):
            head.weight.normal_(std=spread)
            nn.init.normal_(head.bias, std=spread)
        router.width.bias[-1] += spread
    return routers

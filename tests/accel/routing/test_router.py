"""One router and all of them: their sizes, how they start, and the published form by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from accel.errors import InputError
from accel.routing.router import WIDTHS, Router, Routers, RoutersConfig
from tests.accel.routing.made import WAN, vary, wan_routers

variants = pytest.mark.parametrize("variant", ["published", "shared"])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", [30, 60])
def test_the_shared_form_is_below_a_million_parameters_a_block(depth: int) -> None:
    with torch.device("meta"):
        shared = Routers(RoutersConfig("Wan", depth, 3072))
        published = Router(3072, 128, 4, modulated=True)
    assert count(shared) / depth < 1e6
    assert count(published) == 2 * 3072**2 + 2 * 3072 + 128 * (3072 + 1) + 5 * (128 + 1)


@variants
def test_they_start_as_the_dense_network(variant: str) -> None:
    routers = wan_routers(variant)
    x, time = torch.randn(3, 7, 64), torch.randn(3, 64)
    for index in range(WAN.depth):
        gate, widths = routers(index, x, time)
        assert (gate.sigmoid() - 0.7).abs().max() < 0.01
        assert (widths.softmax(-1) - torch.tensor([0.0, 0, 0, 2]).softmax(-1)).abs().max() < 0.01
        probability, width = routers.read(index, x[:1], time[:1])
        assert probability == pytest.approx(0.7, abs=0.01) and width == 1


def by_hand(routers: Routers, index: int, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Modulate every token, ask the heads for every token, and take the mean of what they say."""
    router = routers.blocks[index]
    assert isinstance(router, Router)
    if router.modulation is not None:
        shift, scale = router.modulation(functional.silu(time)).chunk(2, -1)
    else:
        assert routers.modulation is not None and router.table is not None
        shift, scale = (routers.modulation(functional.silu(time)) + router.table).chunk(2, -1)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    hidden = router.trunk(normed * (1 + scale[:, None]) + shift[:, None]).relu()
    return router.gate(hidden).mean(1)[:, 0], router.width(hidden).mean(1)


@variants
def test_it_is_the_published_form(variant: str) -> None:
    routers = vary(wan_routers(variant), 1).double()
    x, time = torch.randn(2, 9, 64, dtype=torch.float64), torch.randn(2, 64, dtype=torch.float64)
    for index in range(WAN.depth):
        for ours, theirs in zip(routers(index, x, time), by_hand(routers, index, x, time), strict=True):
            assert (ours - theirs).abs().max() < 1e-12


def test_samples_do_not_meet() -> None:
    routers, x, time = wan_routers(varied=2), torch.randn(4, 9, 64), torch.randn(4, 64)
    gates, widths = routers(0, x, time)
    for row in range(4):
        gate, width = routers(0, x[row : row + 1], time[row : row + 1])
        assert (gate - gates[row]).abs().max() < 1e-5 and (width - widths[row]).abs().max() < 1e-5


def test_half_precision_changes_little() -> None:
    routers, x, time = wan_routers(varied=2), torch.randn(1, 900, 64), torch.randn(1, 64)
    exact = routers(0, x, time)[0]
    assert (routers(0, x.bfloat16(), time.bfloat16())[0] - exact).abs().max() < 0.03 * max(1, exact.abs().max().item())
    assert math.isfinite(routers.read(0, x.bfloat16(), time.bfloat16())[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth of routers is 0; give a whole number, at least 1"),
        ({"variant": "small"}, "variant of routers is 'small'; accepted: published, shared"),
        ({"widths": (0.5, 0.25, 1.0)}, "give rising shares above 0, the last one 1"),
        ({"widths": (0.25, 0.5)}, "give rising shares above 0, the last one 1"),
        ({"widths": (0.0, 1.0)}, "give rising shares above 0, the last one 1"),
    ],
)
def test_bad_configurations(options: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"model": "Wan", "depth": 2, "channels": 8, "widths": WIDTHS} | options
    with pytest.raises(InputError, match=message):
        RoutersConfig(**fields)

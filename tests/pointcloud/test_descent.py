"""A step of training: made as a whole, clipped, or refused with nothing changed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pointcloud.descent import descend, whole_step


def make() -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    return network, torch.optim.SGD(network.parameters(), 0.0), torch.randn(8, 3)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_step_is_clipped_and_made() -> None:
    network, optimizer, x = make()
    before = state(network)
    with whole_step(network):
        descend(1000 * network(x).square().mean(), network, optimizer, 0.5, 2.0, 1)
    moved = [before[name] - tensor for name, tensor in network.named_parameters()]
    assert torch.cat([each.flatten() for each in moved]).norm().item() == pytest.approx(0.5 * 2.0, rel=1e-4)
    assert not torch.equal(network.state_dict()["0.running_mean"], before["0.running_mean"])


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_nothing(factor: float) -> None:
    network, optimizer, x = make()
    before = state(network)
    with (
        pytest.raises(ValueError, match=f"the loss is {factor} at step 7; start again at a lower learning rate"),
        whole_step(network),
    ):
        descend(network(x).square().mean() * factor, network, optimizer, 0.5, 2.0, 7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    network, optimizer, x = make()
    before = state(network)
    # The root of 0 is a number, and its derivative is none.
    with pytest.raises(ValueError, match="the norm of the gradient is (nan|inf) at step 7"), whole_step(network):
        descend((0 * network(x)).sum().sqrt(), network, optimizer, 0.5, 2.0, 7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

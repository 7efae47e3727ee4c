"""An integer network and its binary spikes give the same logits, and every layer sees 0 and 1 alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

spconv = pytest.importorskip("spconv.pytorch")

from pointcloud import nn as layers  # noqa: E402
from pointcloud.nn import IntegerLIF, SpikingLayer, unroll  # noqa: E402
from tests.pointcloud.nn.sparse_scenes import make_scene  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


class Residual(nn.Module):
    """Dense convolution, normalisation, a residual on the potential, a linear map; `steps` inputs in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.first = SpikingLayer(IntegerLIF(4, 0.7), nn.Conv1d(8, 8, 3, padding=1))
        self.second = SpikingLayer(IntegerLIF(3, 0.5), nn.Linear(8, 5))

    def forward(self, steps: Tensor) -> Tensor:
        first = second = None
        total = 0
        for x in steps:
            current = 2 * self.stem(x)
            out, first = self.first(current, first)
            out, second = self.second((current + self.norm(out)).amax(-1), second)
            total = total + out
        return total


class Sparse(nn.Module):
    """Submanifold, strided and inverse convolutions of spconv, as E-3DSNN has them; one step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SpikingLayer(IntegerLIF(4), layer)
            for layer in (
                layers.SubMConv3d(6, 8, 3, bias=False, indice_key="fine"),
                layers.SparseConv3d(8, 8, 2, 2, indice_key="down"),
                layers.SparseInverseConv3d(8, 4, 2, indice_key="down"),
            )
        )

    def forward(self, x: Any) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x.replace_feature(3 * x.features))
        return x.features


def watch(network: nn.Module) -> list[Tensor]:
    """Return the list that collects what every layer behind a neuron gets."""
    seen: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0] if isinstance(given[0], Tensor) else given[0].features)

    for module in network.modules():
        if isinstance(module, SpikingLayer):
            module.layer.register_forward_pre_hook(note)
    return seen


def make(kind: str) -> tuple[nn.Module, Any, int]:
    """Return a network in float64, its input, and how many spike tensors a forward pass has."""
    torch.manual_seed(0)
    if kind == "dense":
        return Residual().double(), torch.randn(5, 4, 3, 9, dtype=torch.float64), 5 * (4 + 3)
    scene = make_scene()
    return Sparse().double(), scene.replace_feature(scene.features.double().requires_grad_()), 3


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_integers_and_spikes_give_the_same_logits_and_gradients(kind: str) -> None:
    network, x, tensors = make(kind)
    network.eval()
    integers = network(x)
    spiking = unroll(copy.deepcopy(network))
    seen = watch(spiking)
    logits = spiking(x)
    assert (logits - integers).abs().max() < 1e-10 and logits.std() > 0.1
    assert len(seen) == tensors and all(((spikes == 0) | (spikes == 1)).all() for spikes in seen)
    assert 0.01 < torch.cat([spikes.flatten() for spikes in seen]).mean() < 0.9
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (integers * weights).sum().backward()
    (logits * weights).sum().backward()
    for (name, ours), expected in zip(spiking.named_parameters(), network.parameters(), strict=True):
        assert (ours.grad - expected.grad).abs().max() < 1e-10 * max(1, expected.grad.abs().max()), name


@torch.no_grad()
@pytest.mark.parametrize("levels", [4, 300])
def test_bundled_spikes_that_arrive_together_are_one_byte(levels: int) -> None:
    network, x, tensors = make("sparse")
    for layer in network.layers:
        layer.neuron.levels = levels
    integers = network(x)
    seen = watch(unroll(network, bundled=True))
    assert (network(x) - integers).abs().max() < 1e-10
    assert len(seen) == tensors and all((spikes.dtype == torch.uint8) == (levels == 4) for spikes in seen)
    seen.clear()
    assert (unroll(network)(x) - integers).abs().max() < 1e-10
    assert len(seen) == tensors and all(spikes.dtype == torch.bool for spikes in seen)


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_layer_without_a_state_returns_none(unrolled: bool) -> None:
    scene = make_scene()
    channels = scene.features.shape[1]
    for layer, given in (
        (layers.SubMConv3d(channels, 8, 3), scene),
        (nn.Linear(channels, 3), scene.features),
    ):
        keeping, passing = (SpikingLayer(IntegerLIF(4), layer, stateful) for stateful in (True, False))
        keeping.unrolled = passing.unrolled = unrolled
        (out, after), (same, nothing) = keeping(given), passing(given)
        assert nothing is None and after.shape == scene.features.shape
        assert torch.equal(getattr(out, "features", out), getattr(same, "features", same))


def test_unrolling_leads_back_and_keeps_names() -> None:
    network, x, _ = make("dense")
    network.eval()
    names, expected = list(network.state_dict()), network(x)
    assert unroll(network) is network and list(network.state_dict()) == names
    assert torch.equal(unroll(network, False)(x), expected)


def test_a_network_without_neurons_is_named() -> None:
    with pytest.raises(ValueError, match="Linear has no SpikingLayer to unroll"):
        unroll(nn.Linear(2, 2))


def test_rows_in_another_order_are_refused() -> None:
    class Restless(nn.Module):
        def forward(self, x: Any) -> Any:
            out = x.replace_feature(x.features.flip(0))
            out.indices = x.indices[torch.randperm(len(x.indices))]
            return out

    with pytest.raises(RuntimeError, match="orders its rows anew in every call"):
        unroll(SpikingLayer(IntegerLIF(2), Restless()))(make_scene())

"""Operations of toy networks against counts by hand."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

pytest.importorskip("spconv.pytorch")

import pointcloud  # noqa: E402
from pointcloud import nn as layers  # noqa: E402
from pointcloud.metering import Energy, LayerEnergy  # noqa: E402
from pointcloud.nn import LIF, IntegerLIF, SpikingLayer, unroll  # noqa: E402
from pointcloud.spikepoint import SpikePoint, tiny  # noqa: E402
from tests.pointcloud.nn.sparse_scenes import make_scene  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def rows(measured: Energy) -> dict[str, LayerEnergy]:
    """Return layers by name."""
    return {layer.name: layer for layer in measured.layers}


def test_a_relu_network_multiplies_and_its_first_spikes_only_add() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    network[3].eval()
    nn.init.constant_(network[1].bias, 0.5)  # normalised values of two rows are +-1: without it, ReLU may leave none
    spikes = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    modes = [module.training for module in network.modules()]
    measured = pointcloud.energy(network, spikes)
    first, norm, relu, last = measured.layers
    assert (first.reads, first.rate, first.pairs, first.dense) == ("spikes", pytest.approx(4 / 6), 2, 24)
    assert (first.additions, first.multiplications) == (pytest.approx(16), 0)  # 4 spikes to 4 outputs each
    assert (norm.part, norm.picojoules, norm.note) == ("norm", 0, "folded into the layer before it")
    assert (relu.part, relu.additions) == ("activation", 8)
    assert (last.reads, last.rate, last.additions, last.multiplications) == ("values", None, 0, 16)
    assert measured.picojoules == pytest.approx(0.9 * 24 + 4.6 * 16) and measured.not_counted == []
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("layer", "shape", "pairs", "channels"),
    [
        (nn.Conv1d(2, 4, 3, padding=1), (1, 2, 5), 13, 8),
        (nn.Conv1d(2, 4, 3), (2, 5), 9, 8),
        (nn.Conv2d(2, 4, 3, padding="same"), (3, 2, 5, 5), 3 * 169, 8),
        (nn.Conv2d(4, 4, 2, stride=2, groups=2), (1, 4, 6, 6), 36, 8),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5), 225, 8),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 4), 64, 6),
        (nn.Linear(6, 5), (7, 3, 6), 21, 30),
    ],
)
def test_pairs_of_dense_layers_leave_padding_out(layer: nn.Module, shape: tuple, pairs: int, channels: int) -> None:
    (values,) = pointcloud.energy(layer, torch.full(shape, 0.5)).layers
    (spikes,) = pointcloud.energy(layer, torch.ones(shape)).layers
    assert (values.pairs, values.multiplications, values.additions) == (pairs, pairs * channels, 0)
    assert (spikes.multiplications, spikes.additions, spikes.rate) == (0, pairs * channels, 1)


def test_pairs_of_sparse_convolutions_are_those_of_the_kernel_map() -> None:
    scene = make_scene(6)
    network = nn.Sequential(
        layers.SubMConv3d(6, 8, 3, indice_key="fine"),
        layers.SparseConv3d(8, 8, 2, 2, indice_key="down"),
        layers.SparseInverseConv3d(8, 4, 2, indice_key="down"),
        layers.SparseConvTranspose3d(4, 2, 2, 2),
        layers.SubMConv3d(2, 3, 1),
    )
    places = {tuple(place) for place in scene.indices.tolist()}
    near = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    neighbors = sum((b, z + i, y + j, x + k) in places for b, z, y, x in places for i, j, k in near)
    measured = pointcloud.energy(network, scene).layers
    # A strided convolution leaves out voxels that no window holds: with kernel and stride 2, the odd end of an axis.
    kept = sum(z < 8 and x < 10 for _, z, _, x in places)
    assert [row.pairs for row in measured[:3]] == [neighbors, kept, kept]
    assert measured[3].pairs == 8 * len(places) and measured[4].pairs == 8 * len(places)
    assert [row.dense // row.pairs for row in measured] == [48, 64, 32, 8, 6]
    assert {row.reads for row in measured} == {"values"}
    spikes = pointcloud.energy(network[0], scene.replace_feature((scene.features > 1).float())).layers[0]
    assert spikes.additions == pytest.approx(neighbors * 48 * (scene.features > 1).double().mean().item())


class Steps(nn.Module):
    """A layer of neurons over two steps, and what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.layer, self.scale = LIF(0.5), nn.Linear(3, 2, bias=False), nn.Parameter(torch.ones(()))

    def forward(self, current: Tensor) -> Tensor:
        membrane, total = None, 0
        for _ in range(2):
            spikes, membrane = self.neuron(current, membrane)
            total = total + self.layer(spikes)
        return total * self.scale


def test_neurons_have_rows_and_unknown_parameters_are_named() -> None:
    measured = pointcloud.energy(Steps(), torch.tensor([[0.7, 1.2, 0.1]]))  # fires: 0 1 0, then 1 1 0
    neuron, layer = rows(measured)["neuron"], rows(measured)["layer"]
    assert (neuron.calls, neuron.additions, neuron.multiplications) == (2, 6, 3)
    assert (layer.calls, layer.rate, layer.additions) == (2, pytest.approx(0.5), pytest.approx(6))
    assert measured.not_counted == ["Steps"]


def test_unrolled_spikes_cost_what_their_integers_count() -> None:
    network = SpikingLayer(IntegerLIF(4), nn.Linear(16, 8))
    current = 2 * torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    integers, spikes = pointcloud.energy(network, current), pointcloud.energy(unroll(network), current)
    assert rows(spikes)["layer"].additions == pytest.approx(rows(integers)["layer"].additions)
    assert (rows(spikes)["layer"].calls, rows(spikes)["neuron"].additions) == (4, 4 * 30 * 16)


def test_spikepoint_names_its_coding_and_counts_all_else() -> None:
    torch.manual_seed(0)
    clouds = torch.rand(2, 64, 3)
    sizes = {"points": 64, "groups": 16, "neighbors": 8, "steps": 3, "neuron": "lif"}
    for changes, reads, coding in (
        ({"coding": "rate"}, "spikes", 3 * 2 * 16 * (8 * 6 + 3)),
        ({"coding": "direct"}, "values", 0),
        ({"spiking": False}, "values", 0),
    ):
        measured = pointcloud.energy(SpikePoint(tiny("ab", **sizes, **changes)), clouds)
        found = rows(measured)
        assert found["local.0.linear"].reads == found["centers.0.linear"].reads == reads
        assert found["coding"].additions == coding and measured.not_counted == []
        assert found["head.1.linear"].reads == ("values" if "spiking" in changes else "spikes")
        steps = 1 if "spiking" in changes else 3
        assert found["local.0.linear"].dense == steps * 2 * 16 * 8 * 6 * 32


def test_a_table_and_json_tell_the_same() -> None:
    measured = pointcloud.energy(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.full((2, 3), 0.3))
    told = json.loads(measured.to_json())
    assert told["picojoules"] == pytest.approx(sum(row["picojoules"] for row in told["layers"]))
    assert told["parts"] == {"layer": pytest.approx(24 * 4.6), "activation": pytest.approx(7.2)}
    text = io.StringIO()
    Console(width=200, file=text).print(measured)
    assert "Linear" in text.getvalue() and "0.12" in text.getvalue()


def test_sparse_convolutions_that_take_all_steps_at_once_cost_what_their_integers_count() -> None:
    network = SpikingLayer(IntegerLIF(4), layers.SubMConv3d(6, 8, 3, bias=False))
    scene = make_scene()
    scene = scene.replace_feature(2 * scene.features)
    integers, spikes = (pointcloud.energy(model, scene) for model in (network, unroll(network)))
    one, other = rows(integers)["layer"], rows(spikes)["layer"]
    assert one.additions == pytest.approx(other.additions) and one.additions > 0
    assert one.rate == pytest.approx(other.rate) and one.pairs == other.pairs and other.reads == "spikes"

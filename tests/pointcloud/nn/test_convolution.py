"""The layers against spconv on one thread and against dense convolution, and spconv's own error on two threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

spconv = pytest.importorskip("spconv.pytorch")

from spconv.pytorch.conv import SparseConvolution  # noqa: E402

import pointcloud  # noqa: E402
from pointcloud import nn as layers  # noqa: E402
from pointcloud.nn.convolution import map_of  # noqa: E402
from tests.pointcloud.nn.sparse_scenes import SHAPE, make_scene  # noqa: E402

# spconv's own dense() does this.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """spconv is right on one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A small U of every kind of layer, with shared keys."""

    def __init__(self, source: Any):
        super().__init__()
        self.stem = source.SubMConv3d(6, 8, 3, indice_key="one")
        self.again = source.SubMConv3d(8, 8, 3, bias=False, indice_key="one")
        self.down = source.SparseConv3d(8, 12, 3, stride=2, padding=1, bias=False, indice_key="down")
        self.mix = source.SubMConv3d(12, 12, (3, 1, 3), bias=False, dilation=2)
        self.point = source.SubMConv3d(12, 12, 1)
        self.up = source.SparseInverseConv3d(12, 8, 3, bias=False, indice_key="down")
        self.grow = source.SparseConvTranspose3d(8, 3, 2, stride=2, bias=False)

    def forward(self, x: Any) -> list[Any]:
        fine = self.again(self.stem(x))
        coarse = self.point(self.mix(self.down(fine)))
        up = self.up(coarse)
        return [fine, coarse, up, self.grow(up)]


def test_oddities_of_kernel_1_stay() -> None:
    x = make_scene()
    layer = layers.SubMConv3d(6, 4, 1, bias=False)
    assert torch.equal(layer(x).features, x.features @ layer.weight.view(6, 4))
    net = spconv.SparseSequential(
        layers.SparseConv3d(6, 4, 3, 2, 1, indice_key="down"), layers.SparseInverseConv3d(4, 4, 1, indice_key="down")
    )
    assert torch.equal(net(x).indices, net[0](x).indices) and not torch.equal(net(x).indices, x.indices)


def test_a_network_of_spconv_keeps_its_results_when_converted() -> None:
    torch.manual_seed(0)
    net, x = Net(spconv).train(), make_scene()  # in evaluation mode spconv refuses a bias on the CPU
    keys = list(net.state_dict())
    expected = [out.dense() for out in net(x)]
    assert pointcloud.convert(net) is net
    assert {type(module).__module__ for module in net.children()} == {"pointcloud.nn.convolution"}
    for mode in (True, False):
        for ours, dense in zip(net.train(mode)(x), expected, strict=True):
            assert (ours.dense() - dense).abs().max() < 2e-6
    assert list(net.state_dict()) == keys
    pointcloud.convert(net, to="spconv")
    assert all(torch.equal(out.dense(), dense) for out, dense in zip(net.train()(x), expected, strict=True))
    with pytest.raises(ValueError, match="accepted: 'pointcloud', 'spconv'"):
        pointcloud.convert(net, to="minkowski")


@pytest.mark.parametrize("kind", ("SubMConv", "SparseConv", "SparseConvTranspose"))
@pytest.mark.parametrize("axes", (1, 2, 4))
def test_other_numbers_of_axes(kind: str, axes: int) -> None:
    generator = torch.Generator().manual_seed(axes)
    places = torch.randint(5, (60, axes + 1), generator=generator).unique(dim=0).int()
    x = spconv.SparseConvTensor(torch.randn(len(places), 6, generator=generator), places, [5] * axes, 5)
    layer = getattr(spconv, f"{kind}{axes}d")(6, 7, 3, bias=False)
    expected = layer(x).dense()
    assert (pointcloud.convert(layer)(x).dense() - expected).abs().max() < 2e-6


def test_layers_that_stay_spconvs_are_named() -> None:
    class Own(spconv.SubMConv3d):
        pass

    net = nn.Sequential(Own(4, 4, 3), SparseConvolution(3, 4, 4, 3, subm=True), spconv.pool.SparseMaxPool(3, 2, 2))
    with pytest.warns(UserWarning, match="these are subclasses of spconv's layers, and stay spconv's: 0$"):
        pointcloud.convert(net)
    assert [type(layer).__name__ for layer in net] == ["Own", "CPUConvolution", "CPUMaxPool"]
    assert net[2](net[1](make_scene(4))).features.isfinite().all()
    pointcloud.convert(net, "spconv")
    assert type(net[1]) is SparseConvolution and type(net[2]) is spconv.pool.SparseMaxPool


def test_nothing_inverts_a_submanifold_convolution() -> None:
    x = layers.SubMConv3d(6, 6, 3, indice_key="same")(make_scene())
    with pytest.raises(ValueError, match="'same' is that of a submanifold convolution, which nothing inverts"):
        layers.SparseInverseConv3d(6, 6, 3, indice_key="same")(x)


def test_checkpoints_go_both_ways() -> None:
    theirs, ours = Net(spconv), Net(layers)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert [type(module).__name__ for module in ours.children()] == [
        type(module).__name__ for module in theirs.children()
    ]


def test_gradients_equal_those_of_dense_convolution() -> None:
    torch.manual_seed(0)
    layer = layers.SparseConv3d(6, 5, 3, stride=2, padding=1).double()
    x = make_scene()
    leaf = x.features.double().requires_grad_()
    out = layer(x.replace_feature(leaf))
    (out.features.square().sum()).backward()
    ours = [leaf.grad, layer.weight.grad, layer.bias.grad]
    other = leaf.detach().clone().requires_grad_()
    weight, bias = layer.weight.detach().clone().requires_grad_(), layer.bias.detach().clone().requires_grad_()
    dense = nn.functional.conv3d(x.replace_feature(other).dense(), weight.permute(0, 4, 1, 2, 3), bias, 2, 1)
    at = out.indices.long()
    dense[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]].square().sum().backward()
    for got, expected in zip(ours, (other.grad, weight.grad, bias.grad), strict=True):
        assert (got - expected).abs().max() < 1e-11


def test_bfloat16_autocast_and_training() -> None:
    layer = layers.SubMConv3d(6, 4, 3)
    x = make_scene()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.features.dtype == torch.bfloat16
    assert (out.features.float() - layer(x).features).abs().max() < 0.03
    out.features.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_activation_and_added_input() -> None:
    from cumm import tensorview

    torch.manual_seed(0)
    relu = layers.SubMConv3d(6, 6, 3).eval()
    relu.act_type = tensorview.gemm.Activation.ReLU  # as spconv fuses it
    plain = layers.SubMConv3d(6, 6, 3)
    plain.load_state_dict(relu.state_dict())
    x = make_scene()
    assert torch.equal(relu(x, add_input=x).features, (plain(x).features + x.features).relu())


def test_pairs_of_spconv_become_the_same_map() -> None:
    x = make_scene()
    for kind, options in ((spconv.SubMConv3d, {}), (spconv.SparseConv3d, {"stride": 2, "padding": 1})):
        layer = kind(6, 6, 3, bias=False, indice_key="key", **options)
        theirs = layer(x)
        made = map_of(theirs.indice_dict["key"])
        pointcloud.convert(layer)
        ours = map_of(layer(x).indice_dict["key"])
        assert made.pairs() == ours.pairs() and made.shape == ours.shape
        met = []
        for one in (made, ours):
            slots, outputs = (one.forward >= 0).nonzero().T
            inputs = one.forward[slots, outputs].long()
            assert torch.equal(one.backward[slots, inputs], outputs.int())
            ends = one.input_coordinates[inputs], one.coordinates[outputs]
            met.append(torch.cat([slots[:, None], *ends], 1).unique(dim=0))
        assert torch.equal(*met)


def test_clear_errors() -> None:
    x = make_scene()
    with pytest.raises(ValueError, match="features have 6 channels, this layer takes 5"):
        layers.SubMConv3d(5, 4, 3)(x)
    with pytest.raises(ValueError, match="no earlier convolution has the indice_key 'none'"):
        layers.SparseInverseConv3d(6, 4, 3, indice_key="none")(x)
    with pytest.raises(ValueError, match="is taken"):
        twice = layers.SparseConv3d(6, 6, 3, indice_key="a")
        twice(twice(x))
    double = spconv.SparseConvTensor(torch.zeros(2, 6), torch.zeros(2, 4, dtype=torch.int32), SHAPE, 1)
    with pytest.raises(ValueError, match="unique"):
        layers.SubMConv3d(6, 4, 3)(double)


RACE = """
import torch, spconv.pytorch as spconv
for seed in range(300):
    torch.manual_seed(seed)
    places = torch.randint(24, (6000, 3)).unique(dim=0)
    places = torch.cat([torch.zeros(len(places), 1), places], 1).int()
    x = spconv.SparseConvTensor(torch.randn(len(places), 32), places, [24] * 3, 1)
    layer = spconv.SubMConv3d(32, 32, 3, bias=False)
    with torch.no_grad():
        torch.set_num_threads(1)
        right = layer(x).features
        torch.set_num_threads(2)
        if not torch.allclose(layer(x).features, right, atol=1e-4):
            print("wrong")
            break
"""


def test_spconv_is_still_wrong_on_two_threads() -> None:
    """When this is always skipped, spconv has mended its scatter, and a reason for our kernel is out of date."""
    command, busy = [sys.executable, "-W", "ignore", "-c", RACE], os.environ | {"OMP_WAIT_POLICY": "active"}
    run = subprocess.run(command, env=busy, capture_output=True, text=True, check=True)
    if not run.stdout:  # a race needs two threads at the same moment, which a busy machine may not give
        pytest.skip("spconv's race was not met in 300 convolutions on two threads")
    assert run.stdout == "wrong\n"

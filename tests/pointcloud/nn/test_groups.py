"""Convolution in groups, which spconv refuses: against torch's dense one, and with keys and checkpoints."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

spconv = pytest.importorskip("spconv.pytorch")

import pointcloud  # noqa: E402
from pointcloud import nn as layers  # noqa: E402
from pointcloud.nn.convolution import map_of  # noqa: E402
from tests.pointcloud.nn.sparse_scenes import make_scene  # noqa: E402

# spconv's own dense() does this.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def _rows(dense: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    at = places.long()
    return dense[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]]


@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("kernel", [1, 3])
def test_layers_equal_dense_convolution_with_gradients(groups: int, kernel: int) -> None:
    torch.manual_seed(0)
    layer = layers.SubMConv3d(6, 12, kernel, groups=groups)
    x = make_scene()
    dense = nn.Conv3d(6, 12, kernel, padding=kernel // 2, groups=groups)
    dense.load_state_dict({"weight": layer.weight.detach().movedim(-1, 1), "bias": layer.bias.detach()})
    ours, expected = layer(x).features, _rows(dense(x.dense()), x.indices)
    assert (ours - expected).abs().max() < 1e-6
    ours.square().sum().backward()
    expected.square().sum().backward()
    scale = dense.weight.grad.abs().max()
    assert (layer.weight.grad.movedim(-1, 1) - dense.weight.grad).abs().max() < 1e-5 * scale


def test_kernel_1_keeps_rows_and_keys() -> None:
    """As in one group: no key is looked at, and nothing inverts."""
    x = layers.SparseConv3d(6, 6, 3, 2, 1, indice_key="down")(make_scene())
    shuffled = torch.randperm(len(x.indices))
    x = spconv.SparseConvTensor(
        x.features[shuffled], x.indices[shuffled], x.spatial_shape, 2, indice_dict=x.indice_dict
    )
    for layer in (
        layers.SparseConv3d(6, 6, 1, groups=2),
        layers.SubMConv3d(6, 6, 1, groups=2, indice_key="down"),
        layers.SparseInverseConv3d(6, 6, 1, indice_key="down", groups=2),
    ):
        out = layer(x)
        assert torch.equal(out.indices, x.indices) and out.spatial_shape == x.spatial_shape
        weight = torch.block_diag(*layer.weight.view(6, 3).split(3))
        assert torch.allclose(out.features, x.features @ weight.T + layer.bias, atol=1e-6)


def test_down_and_up_again_in_groups() -> None:
    torch.manual_seed(0)
    x = make_scene()
    down = layers.SparseConv3d(6, 8, 3, 2, 1, 1, 2, False, "down")  # all of them by place, as spconv has them
    up = layers.SparseInverseConv3d(8, 6, 3, indice_key="down", bias=False, groups=2)
    grow = layers.SparseConvTranspose3d(8, 4, 2, stride=2, groups=4, bias=False)
    coarse = down(x)
    expected = nn.functional.conv3d(x.dense(), down.weight.movedim(-1, 1), None, 2, 1, groups=2)
    assert (coarse.features - _rows(expected, coarse.indices)).abs().max() < 1e-6
    assert torch.equal(up(coarse).indices, x.indices) and up(coarse).features.shape == (len(x.indices), 6)
    weight = grow.weight.movedim(-1, 1).unflatten(0, (4, 1)).transpose(1, 2).flatten(0, 1)
    grown = grow(coarse)
    expected = nn.functional.conv_transpose3d(coarse.dense(), weight, None, 2, groups=4)
    assert (grown.features - _rows(expected, grown.indices)).abs().max() < 1e-6


def test_weights_are_drawn_as_for_dense_layers_and_kept_in_checkpoints() -> None:
    torch.manual_seed(0)
    layer = layers.SubMConv3d(64, 64, 3, groups=64)
    assert layer.weight.shape == (64, 3, 3, 3, 1) and "groups=64" in repr(layer)
    largest = nn.Conv3d(64, 64, 3, groups=64).weight.abs().max().item()
    assert layer.weight.abs().max().item() == pytest.approx(largest, rel=0.02)
    other = layers.SubMConv3d(64, 64, 3, groups=64)
    other.load_state_dict(layer.state_dict())
    x = make_scene(channels=64)
    assert torch.equal(other(x).features, layer(x).features)
    assert torch.equal(copy.deepcopy(layer)(x).features, layer(x).features)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).features.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [layers.SubMConv3d, layers.SparseConv3d, layers.SparseConvTranspose3d])
@pytest.mark.parametrize("groups", [0, 4])
def test_groups_that_do_not_divide_are_refused(kind: Any, groups: Any) -> None:
    with pytest.raises(ValueError, match="groups must be a whole number that divides the 6 in .* the 8 out channels"):
        kind(6, 8, 3, groups=groups)


def test_networks_in_groups_do_not_go_back_to_spconv() -> None:
    network = nn.Sequential(layers.SubMConv3d(6, 6, 3), layers.SubMConv3d(6, 6, 3, groups=3))
    with pytest.raises(ValueError, match="1 is a convolution in 3 groups, which spconv does not have"):
        pointcloud.convert(network, to="spconv")
    assert isinstance(network[0], layers.SubMConv3d) and pointcloud.convert(network) is network


def test_pairs_of_cuda_are_refused() -> None:
    with pytest.raises(ValueError, match="CUDA kernels .dict.*give it a key of its own"):
        map_of({})

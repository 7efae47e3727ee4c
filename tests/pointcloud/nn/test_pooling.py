"""Poolings against torch's dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

spconv = pytest.importorskip("spconv.pytorch")

import pointcloud  # noqa: E402
from pointcloud import nn as layers  # noqa: E402
from pointcloud.e3dsnn.network import mean_of_clouds  # noqa: E402
from tests.pointcloud.nn.sparse_scenes import dense_with, make_scene  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def test_maximum_equals_the_dense_one_and_may_be_negative() -> None:
    x = make_scene()
    x = x.replace_feature(x.features - 5)  # everything is negative: spconv's maximum would be 0
    leaf = x.features.clone().requires_grad_()
    out = layers.SparseMaxPool3d(3, 2, 1)(x.replace_feature(leaf))
    other = x.features.clone().requires_grad_()
    dense = nn.functional.max_pool3d(dense_with(x.replace_feature(other), -1e9), 3, 2, 1)
    at = out.indices.long()
    expected = dense[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]]
    assert torch.equal(out.features, expected) and out.features.max() < 0
    assert out.spatial_shape == list(dense.shape[2:]) and len(at) == int((dense.amax(1) > -1e8).sum())
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (out.features * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)


def test_maximum_of_nan_and_of_minus_infinity() -> None:
    x = make_scene()
    features = torch.full_like(x.features, -torch.inf)
    features[0] = torch.nan
    out = layers.SparseMaxPool3d(3, 1, 1)(x.replace_feature(features)).features
    assert out.isnan().any() and (out.isnan() | (out == -torch.inf)).all()


def test_mean_equals_dense_sums_over_counts() -> None:
    x = make_scene()
    out = layers.SparseAvgPool3d(3, 2, 1)(x)
    sums = nn.functional.avg_pool3d(x.dense(), 3, 2, 1, divisor_override=1)
    ones = x.replace_feature(torch.ones(len(x.features), 1))
    counts = nn.functional.avg_pool3d(ones.dense(), 3, 2, 1, divisor_override=1)
    at = out.indices.long()
    expected = (sums / counts)[at[:, 0], :, at[:, 1], at[:, 2], at[:, 3]]
    assert (out.features - expected).abs().max() < 1e-6


def test_global_poolings() -> None:
    x = make_scene()
    sample = x.indices[:, 0]
    for layer, reduce in ((layers.SparseGlobalMaxPool(), torch.amax), (layers.SparseGlobalAvgPool(), torch.mean)):
        expected = torch.stack([reduce(x.features[sample == number], 0) for number in range(2)])
        assert torch.allclose(layer(x), expected, atol=1e-6)


def test_means_of_many_rows_are_summed_in_float32() -> None:
    x = spconv.SparseConvTensor(torch.ones(3000, 2), torch.arange(3000)[:, None].expand(-1, 4).int() * 0, [1, 1, 1], 1)
    for dtype in (torch.bfloat16, torch.float16):  # sums would stop at 256 and at 2,048
        half = x.replace_feature(x.features.to(dtype))
        assert (layers.SparseGlobalAvgPool()(half) == 1).all()
        assert (mean_of_clouds(half.features, half.indices[:, 0], 1) == 1).all()


def test_voxel_counts_are_recorded() -> None:
    layer, x = layers.SparseMaxPool3d(3, 2, 1, record_voxel_count=True), make_scene()
    rows = len(layer(x).indices)
    assert layer.get_max_num_voxels().item() == rows > 0


def test_an_inverse_convolution_leads_back_from_a_pooling() -> None:
    """The map that a pooling of ours keeps is the one that an inverse convolution finds, and so is spconv's."""
    torch.manual_seed(0)
    before, x = torch.get_num_threads(), make_scene()
    torch.set_num_threads(1)
    net = spconv.SparseSequential(
        spconv.SparseMaxPool3d(3, 2, 1, indice_key="pool"),
        spconv.SparseInverseConv3d(6, 4, 3, bias=False, indice_key="pool"),
    )
    positive = x.replace_feature(x.features.abs())
    expected = net(positive).dense()
    ours = pointcloud.convert(net)(positive)
    torch.set_num_threads(before)
    assert type(net[0]) is layers.SparseMaxPool3d and torch.equal(ours.indices, x.indices)
    assert (ours.dense() - expected).abs().max() < 1e-6
    pool = layers.SparseMaxPool3d(3, 2, 1, indice_key="pool")
    with pytest.raises(ValueError, match="'pool' is taken"):
        pool(pool(positive))


def test_a_submanifold_pooling_shares_a_key_only_with_its_own_kind() -> None:
    x = make_scene()
    after = layers.SubMConv3d(6, 6, 3, indice_key="same")(x)
    maximum = spconv.pool.SparseMaxPool(3, 3, indice_key="same", subm=True)
    maximum.__class__ = layers.pooling.CPUMaxPool
    out = maximum(after)
    assert torch.equal(out.indices, x.indices) and (out.features >= after.features).all()
    maximum.kernel_size = [5, 5, 5]
    with pytest.raises(ValueError, match="'same' is taken"):
        maximum(after)

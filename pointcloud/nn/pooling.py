"""spconv's poolings: on the CPU over existing inputs only, so that a maximum may be negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import spconv.pytorch as spconv
import torch
from jaxtyping import Float
from spconv.pytorch.core import SparseConvTensor
from spconv.pytorch.modules import SparseModule
from spconv.pytorch.pool import SparseAvgPool, SparseMaxPool
from torch import Tensor

from pointcloud.nn.convolution import indice_data, map_of, record_voxels
from pointcloud.scatter import scatter
from sparse_kernels.sparse_conv import KernelMap, strided_map, submanifold_map


def _kernel_map(layer: Any, input: SparseConvTensor, out: SparseConvTensor) -> KernelMap:
    """Return the map of a pooling, kept in `out` under the layer's key for an inverse convolution."""
    shared, submanifold = input.find_indice_pair(layer.indice_key), layer.subm
    if shared is not None:
        made = map_of(shared)
        same = made.kernel == tuple(layer.kernel_size) and list(shared.dilation) == list(layer.dilation)
        if not (submanifold and shared.is_subm and same and len(made.coordinates) == len(input.indices)):
            raise ValueError(f"indice_key {layer.indice_key!r} is taken; give this pooling another one")
        return made
    place = input.indices, input.spatial_shape, layer.kernel_size
    made = (
        submanifold_map(*place, layer.dilation)
        if submanifold
        else strided_map(*place, layer.stride, layer.padding, layer.dilation)
    )
    if layer.indice_key is not None:
        out.indice_dict = {**input.indice_dict, layer.indice_key: indice_data(made, layer, submanifold)}
    return made


def max_over_map(x: Float[Tensor, "n c"], kernel_map: KernelMap) -> Float[Tensor, "m c"]:
    """Return the largest input of each output and channel; of equal ones the first slot's gets the gradient."""
    with torch.no_grad():
        best = x.new_full((kernel_map.forward.shape[1], x.shape[1]), -torch.inf)
        rows = torch.full(best.shape, -1, dtype=torch.int64, device=x.device)
        for source in kernel_map.forward.long():
            there = (source >= 0).nonzero().flatten()
            values, old = x[source[there]], best[there]
            larger = (values > old) | values.isnan() | (rows[there] < 0)  # NaN wins, as in a dense maximum
            best[there] = torch.where(larger, values, old)
            rows[there] = torch.where(larger, source[there, None], rows[there])
    return x.gather(0, rows)


def mean_over_map(x: Float[Tensor, "n c"], kernel_map: KernelMap) -> Float[Tensor, "m c"]:
    """Return the mean of the existing inputs of each output."""
    slots, outputs = (kernel_map.forward >= 0).nonzero().unbind(1)
    inputs = kernel_map.forward[slots, outputs].long()
    sums = x.new_zeros(kernel_map.forward.shape[1], x.shape[1]).index_add(0, outputs, x[inputs])
    return sums / (kernel_map.forward >= 0).sum(0)[:, None].to(x.dtype)


class CPUPooling(SparseModule):
    """What the poolings below add to those of spconv: a forward pass on the CPU, by `over_map`."""

    over_map: Callable[[Tensor, KernelMap], Tensor]

    def forward(self, input: SparseConvTensor) -> SparseConvTensor:
        """Return the pooled tensor, rows in ascending order of coordinates (in the input's order if submanifold)."""
        if input.features.is_cuda or input.is_quantized:
            return super().forward(input)
        out = input.shadow_copy()
        kernel_map = _kernel_map(self, input, out)
        out = out.replace_feature(self.over_map(input.features, kernel_map))
        out.indices, out.spatial_shape = kernel_map.coordinates, list(kernel_map.shape)
        record_voxels(self, kernel_map)
        return out


class CPUMaxPool(CPUPooling, SparseMaxPool):
    """spconv's maximum starts at 0, on CUDA too; this one does not on the CPU."""

    over_map = staticmethod(max_over_map)


class CPUAvgPool(CPUPooling, SparseAvgPool):
    """spconv's mean runs on CUDA only."""

    over_map = staticmethod(mean_over_map)


class SparseGlobalMaxPool(spconv.SparseGlobalMaxPool):
    """The largest feature of each sample and channel, (batch c); -inf where a sample has no rows."""

    def forward(self, input: SparseConvTensor) -> Float[Tensor, "batch c"]:
        """Reduce the rows of each sample, on any device."""
        x = input.features
        index = input.indices[:, :1].long().expand(-1, x.shape[1])
        return x.new_full((input.batch_size, x.shape[1]), -torch.inf).scatter_reduce(0, index, x, "amax")


class SparseGlobalAvgPool(spconv.SparseGlobalAvgPool):
    """The mean feature of each sample and channel, (batch c); 0 where a sample has no rows."""

    def forward(self, input: SparseConvTensor) -> Float[Tensor, "batch c"]:
        """Average the rows of each sample, on any device."""
        return scatter(input.features, input.indices[:, 0].long(), input.batch_size, "mean")


class SparseMaxPool1d(CPUMaxPool, spconv.SparseMaxPool1d):
    """The maximum over 1-D neighbourhoods."""


class SparseMaxPool2d(CPUMaxPool, spconv.SparseMaxPool2d):
    """The maximum over 2-D neighbourhoods."""


class SparseMaxPool3d(CPUMaxPool, spconv.SparseMaxPool3d):
    """The maximum over 3-D neighbourhoods."""


class SparseMaxPool4d(CPUMaxPool, spconv.SparseMaxPool4d):
    """The maximum over 4-D neighbourhoods."""


class SparseAvgPool1d(CPUAvgPool, spconv.SparseAvgPool1d):
    """The mean over 1-D neighbourhoods."""


class SparseAvgPool2d(CPUAvgPool, spconv.SparseAvgPool2d):
    """The mean over 2-D neighbourhoods."""


class SparseAvgPool3d(CPUAvgPool, spconv.SparseAvgPool3d):
    """The mean over 3-D neighbourhoods."""

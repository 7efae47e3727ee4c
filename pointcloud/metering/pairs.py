"""How many rows of the input a linear layer brings to rows of its output: what its channels are multiplied by."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparse_kernels.sparse_conv import strided_map, submanifold_map, transposed_map

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def pairs_and_channels(layer: nn.Module, given: Any, out: Any) -> tuple[int, int] | None:
    """Return pairs and channels in times channels out of a call; None for what is no linear layer that is known.

    Zeros of the padding and cells without a voxel make no pair.
    """
    if isinstance(layer, nn.Linear):
        return given.numel() // layer.in_features, layer.in_features * layer.out_features
    if isinstance(layer, CONVOLUTIONS):
        return _dense_pairs(layer, given), layer.in_channels * layer.out_channels // layer.groups
    spconv = sys.modules.get("spconv.pytorch.conv")  # without it no layer is one of spconv's
    if spconv is not None and isinstance(layer, spconv.SparseConvolution):
        sparse: Any = layer
        return _sparse_pairs(sparse, given, out), sparse.in_channels * sparse.out_channels // sparse.groups
    return None


def _dense_pairs(layer: Any, given: Tensor) -> int:
    """Return the sum of a convolution of ones by ones, each of which is a pair."""
    axes = len(layer.kernel_size)
    unbatched = given.ndim == axes + 1
    samples = 1 if unbatched else given.shape[0]
    ones = torch.ones(1, 1, *given.shape[-axes:], dtype=torch.float64)
    if layer.padding_mode != "zeros":  # what is repeated there is as much an input as any other
        ones = functional.pad(ones, layer._reversed_padding_repeated_twice, layer.padding_mode)
    weight = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    if layer.transposed:
        run = getattr(functional, f"conv_transpose{axes}d")
        made = run(ones, weight, None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
    else:
        padding = 0 if layer.padding_mode != "zeros" else layer.padding
        made = getattr(functional, f"conv{axes}d")(ones, weight, None, layer.stride, padding, layer.dilation)
    return samples * round(made.sum().item())


def _sparse_pairs(layer: Any, given: Any, out: Any) -> int:
    """Return the pairs of the kernel map, made anew from coordinates, as layers on CUDA keep it in another form."""
    if math.prod(layer.kernel_size) == 1 and math.prod(layer.stride) == 1 and not layer.inverse:
        return len(given.indices)
    place = given.indices, given.spatial_shape, layer.kernel_size
    settings = layer.stride, layer.padding, layer.dilation
    if layer.subm:
        made = submanifold_map(*place, layer.dilation)
    elif layer.inverse:
        there = given.find_indice_pair(layer.indice_key)
        made = strided_map(out.indices, out.spatial_shape, there.ksize, there.stride, there.padding, there.dilation)
    elif layer.transposed:
        made = transposed_map(*place, *settings, layer.output_padding)
    else:
        made = strided_map(*place, *settings)
    return int((made.forward >= 0).sum())

"""spconv's convolutions: its own kernels on CUDA, ours on the CPU, where its sums race and its backward fails."""

from __future__ import annotations

import inspect
from typing import Any

import spconv.pytorch as spconv
import torch
from jaxtyping import Shaped
from spconv.pytorch.conv import SparseConvolution, _apply_act
from spconv.pytorch.core import IndiceData, SparseConvTensor
from torch import Tensor, nn

from sparse_kernels.sparse_conv import KernelMap, sparse_conv, strided_map, submanifold_map, transposed_map
from sparse_kernels.sparse_conv.api import check_groups
from sparse_kernels.spike_conv import spike_conv


class CPUConvolution(SparseConvolution):
    """What the layers below add to those of spconv: a forward pass on the CPU, and `groups`.

    Parameters (KRSC), state dict, `SparseConvTensor` and `indice_key` are spconv's. On the CPU, strided outputs come in
    ascending order of coordinates, gradients of every order exist, and results do not depend on the number of threads.

    With `groups`, which spconv refuses, channels and initial weights are those of torch.nn.Conv3d, the weights
    (out, kernel axes, in / groups); on CUDA such a layer runs in torch. ValueError where groups do not divide channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *args: Any, groups: int | None = None, **options: Any):
        theirs = inspect.signature(super().__init__)  # of the layer of spconv that a class below names
        known = "groups" in theirs.parameters  # those of inverse convolutions leave it out
        named = {"groups": groups} if known and groups is not None else {}
        given = theirs.bind(in_channels, out_channels, *args, **options, **named)
        count: int = given.arguments.pop("groups", 1 if groups is None else groups)
        check_groups(count, in_channels, out_channels)
        super().__init__(*given.args, **given.kwargs)
        self.groups: int = count
        if count != 1:
            self.weight_shape = [*self.weight.shape[:-1], in_channels // count]
            self.weight = nn.Parameter(self.weight.new_empty(self.weight_shape))
            self.reset_parameters()

    def _calculate_fan_in_and_fan_out(self) -> tuple[int, int]:
        fan_in, fan_out = super()._calculate_fan_in_and_fan_out()
        return fan_in // self.groups, fan_out

    def forward(self, input: SparseConvTensor, add_input: SparseConvTensor | None = None) -> SparseConvTensor:
        """Return the convolved tensor; `add_input` is added before the activation, as spconv does in inference.

        Features of `with_steps` are steps of spikes, whose outputs are added up, and bytes are numbers of spikes that
        arrive together: where `takes_steps` says so.
        """
        # A 1x1 convolution is one matrix product in spconv too; quantised tensors have CUDA kernels only.
        if self.groups == 1 and (input.features.is_cuda or input.is_quantized or self.conv1x1):
            return super().forward(input, add_input)
        features = input.features
        if features.shape[-1] != self.in_channels:
            raise ValueError(f"features have {features.shape[-1]} channels, this layer takes {self.in_channels}")
        if features.ndim == 3:  # which spconv does not copy
            input = input.replace_feature(features[0])
        out = input.shadow_copy()
        out.indice_dict = dict(input.indice_dict)
        kernel_map = self._kernel_map(input, out.indice_dict)
        weight, features = _one_type(self.weight, features, self.groups)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        if features.ndim == 3 or features.dtype == torch.uint8:
            features = spike_conv(features, weight, kernel_map, bias)
        else:
            features = sparse_conv(features, weight, kernel_map, bias, groups=self.groups)
        if add_input is not None:
            features = features + add_input.features
        out = out.replace_feature(_apply_act(features, self.act_type, self.act_alpha, self.act_beta))
        out.indices, out.spatial_shape = kernel_map.coordinates, list(kernel_map.shape)
        record_voxels(self, kernel_map)
        return out

    def _kernel_map(self, input: SparseConvTensor, known: dict[str, Any]) -> KernelMap:
        """Return the map that `indice_key` names, or a new one, which is kept under that key."""
        if self.conv1x1:  # in groups; where it is in one, spconv looks at no key either
            return submanifold_map(input.indices, input.spatial_shape, self.kernel_size, self.dilation)
        shared = input.find_indice_pair(self.indice_key)
        if self.inverse:
            if shared is None:
                raise ValueError(f"no earlier convolution has the indice_key {self.indice_key!r} of this inverse one")
            if shared.is_subm:
                raise ValueError(
                    f"indice_key {self.indice_key!r} is that of a submanifold convolution, which nothing inverts; "
                    "give that of a strided one or of a pooling"
                )
            self._check_inverse_reuse_valid(input, input.spatial_shape, shared)
            return map_of(shared).inverse()
        if shared is not None:
            if not self.subm:
                raise ValueError(f"indice_key {self.indice_key!r} is taken; only submanifold convolutions share one")
            self._check_subm_reuse_valid(input, input.spatial_shape, shared)
            return map_of(shared)
        made = self._build_map(input)
        if self.indice_key is not None:
            known[self.indice_key] = indice_data(made, self, self.subm)
        return made

    def _build_map(self, input: SparseConvTensor) -> KernelMap:
        place = input.indices, input.spatial_shape, self.kernel_size
        if self.subm:
            return submanifold_map(*place, self.dilation)
        settings = self.stride, self.padding, self.dilation
        if self.transposed:
            return transposed_map(*place, *settings, self.output_padding)
        return strided_map(*place, *settings)


def record_voxels(layer: Any, kernel_map: KernelMap) -> None:
    """Note the most outputs that a layer of spconv has had, if it was made to record them."""
    most = layer.get_max_num_voxels()
    if most is not None:
        most.clamp_(min=len(kernel_map.coordinates))


def takes_steps(layer: Any, features: Tensor) -> bool:
    """Return whether a layer takes all spikes of a step in one event-driven call."""
    one = isinstance(layer, CPUConvolution) and layer.groups == 1
    return one and not features.is_cuda and not layer.conv1x1


def with_steps(x: SparseConvTensor, steps: Shaped[Tensor, "steps rows channels"]) -> SparseConvTensor:
    """Return the tensor with steps of spikes for features, which `replace_feature` does not take."""
    out = x.replace_feature(steps[0])
    out._features = steps
    return out


def _one_type(weight: Tensor, features: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return both in autocast's type where it is on, else in the weights' own; but spikes of a byte stay."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    stay = groups == 1 and features.dtype in (torch.bool, torch.uint8)
    return weight.to(dtype), features if stay else features.to(dtype)


def indice_data(made: KernelMap, layer: Any, submanifold: bool) -> IndiceData:
    """Return spconv's record of a layer's map, which its checks of shared keys read; the pairs themselves stay ours."""
    data = IndiceData(
        made.coordinates,
        made.input_coordinates,
        None,
        None,
        list(made.input_shape),
        list(made.shape),
        is_subm=submanifold,
        algo=layer.algo,
        ksize=layer.kernel_size,
        stride=layer.stride,
        dilation=layer.dilation,
        padding=layer.padding,
    )
    data.kernel_map = made  # pyright: ignore[reportAttributeAccessIssue]
    return data


def map_of(data: Any) -> KernelMap:
    """Return the map of a record that a layer of ours or, on the CPU, one of spconv's (a pooling) has left."""
    made = getattr(data, "kernel_map", None)
    if made is None and not isinstance(data, IndiceData):
        raise ValueError(
            f"the indice_key names pairs of spconv's CUDA kernels ({type(data).__name__}), which a convolution in "
            "groups cannot read; give it a key of its own"
        )
    return made if made is not None else _map_of_pairs(data)


def _map_of_pairs(data: Any) -> KernelMap:
    pairs: Tensor = data.indice_pairs
    counts = data.indice_pair_num.tolist()
    slots = len(counts)
    forward = pairs.new_full((slots, len(data.out_indices)), -1)
    backward = pairs.new_full((slots, len(data.indices)), -1)
    for slot in range(slots):
        if not data.is_subm:
            inputs, outputs = pairs[:, slot, : counts[slot]].long()
        elif slot == slots // 2:
            inputs = outputs = torch.arange(len(data.indices), device=pairs.device)
        else:  # counts of a submanifold map are there for the first half only; the other half mirrors it
            inputs, outputs = pairs[:, min(slot, slots - 1 - slot), : counts[min(slot, slots - 1 - slot)]].long()
            if slot > slots // 2:
                inputs, outputs = outputs, inputs
        forward[slot, outputs] = inputs.int()
        backward[slot, inputs] = outputs.int()
    shapes = tuple(data.out_spatial_shape), tuple(data.spatial_shape)
    return KernelMap(forward, backward, data.out_indices, shapes[0], data.indices, shapes[1], tuple(data.ksize))


class SubMConv1d(CPUConvolution, spconv.SubMConv1d):
    """A 1-D submanifold convolution: outputs where inputs are."""


class SubMConv2d(CPUConvolution, spconv.SubMConv2d):
    """A 2-D submanifold convolution: outputs where inputs are."""


class SubMConv3d(CPUConvolution, spconv.SubMConv3d):
    """A 3-D submanifold convolution: outputs where inputs are."""


class SubMConv4d(CPUConvolution, spconv.SubMConv4d):
    """A 4-D submanifold convolution: outputs where inputs are."""


class SparseConv1d(CPUConvolution, spconv.SparseConv1d):
    """A 1-D strided convolution."""


class SparseConv2d(CPUConvolution, spconv.SparseConv2d):
    """A 2-D strided convolution."""


class SparseConv3d(CPUConvolution, spconv.SparseConv3d):
    """A 3-D strided convolution."""


class SparseConv4d(CPUConvolution, spconv.SparseConv4d):
    """A 4-D strided convolution."""


class SparseConvTranspose1d(CPUConvolution, spconv.SparseConvTranspose1d):
    """A 1-D transposed convolution."""


class SparseConvTranspose2d(CPUConvolution, spconv.SparseConvTranspose2d):
    """A 2-D transposed convolution."""


class SparseConvTranspose3d(CPUConvolution, spconv.SparseConvTranspose3d):
    """A 3-D transposed convolution."""


class SparseConvTranspose4d(CPUConvolution, spconv.SparseConvTranspose4d):
    """A 4-D transposed convolution."""


class SparseInverseConv1d(CPUConvolution, spconv.SparseInverseConv1d):
    """A 1-D inverse convolution, back to the coordinates before the one of its `indice_key`."""


class SparseInverseConv2d(CPUConvolution, spconv.SparseInverseConv2d):
    """A 2-D inverse convolution, back to the coordinates before the one of its `indice_key`."""


class SparseInverseConv3d(CPUConvolution, spconv.SparseInverseConv3d):
    """A 3-D inverse convolution, back to the coordinates before the one of its `indice_key`."""


class SparseInverseConv4d(CPUConvolution, spconv.SparseInverseConv4d):
    """A 4-D inverse convolution, back to the coordinates before the one of its `indice_key`."""

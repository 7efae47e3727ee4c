"""Swap the convolutions and poolings of somebody's spconv network for ours, and back."""

from __future__ import annotations

import warnings
from typing import TypeVar

import spconv.pytorch as spconv
from spconv.pytorch.conv import SparseConvolution
from spconv.pytorch.pool import SparseAvgPool, SparseMaxPool
from torch import nn

from pointcloud.nn import convolution, pooling

Network = TypeVar("Network", bound=nn.Module)

KINDS = ("SubMConv", "SparseConv", "SparseConvTranspose", "SparseInverseConv")
CONVOLUTIONS = tuple(f"{kind}{axes}d" for kind in KINDS for axes in (1, 2, 3, 4))
POOLINGS = (
    *(f"SparseMaxPool{axes}d" for axes in (1, 2, 3, 4)),
    *(f"SparseAvgPool{axes}d" for axes in (1, 2, 3)),
    "SparseGlobalMaxPool",
    "SparseGlobalAvgPool",
)


def convert(network: Network, to: str = "pointcloud") -> Network:
    """Change every convolution and pooling of spconv in `network` into ours, or back with `to="spconv"`.

    Done in place and returned: parameters, hooks and names stay, so that optimisers and checkpoints go on. Subclasses
    of spconv's layers are left alone, and a warning names them. ValueError on any other `to`, and on convolutions in
    groups, which spconv cannot run; then nothing is changed.

    Two oddities of spconv stay, on every device, as its checkpoints depend on them. A convolution with kernel 1 and
    stride 1 multiplies by its weight (out, 1, .., in) viewed, not transposed, as (in, out): the same numbers elsewhere.
    An inverse convolution with kernel 1 does not invert: its output stays at the coordinates of its input. Two others
    do not stay on the CPU: a maximum may be negative, where spconv's begins at 0, and a dilated transposed convolution
    reaches as far as torch's.
    """
    if to not in ("pointcloud", "spconv"):
        raise ValueError(f"to is {to!r}; accepted: 'pointcloud', 'spconv'")
    ours = [(convolution, name) for name in CONVOLUTIONS] + [(pooling, name) for name in POOLINGS]
    classes = {getattr(spconv, name): getattr(module, name) for module, name in ours} | {
        SparseConvolution: convolution.CPUConvolution,
        SparseMaxPool: pooling.CPUMaxPool,
        SparseAvgPool: pooling.CPUAvgPool,
    }
    if to == "spconv":
        classes = {own: theirs for theirs, own in classes.items()}
        _refuse_groups(network)
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    left = [name for name, module in network.named_modules() if to == "pointcloud" and _is_theirs(module)]
    if left:
        warnings.warn(f"these are subclasses of spconv's layers, and stay spconv's: {', '.join(left)}", stacklevel=2)
    return network


def _is_theirs(module: nn.Module) -> bool:
    layers = SparseConvolution, SparseMaxPool, SparseAvgPool
    return isinstance(module, layers) and not isinstance(module, convolution.CPUConvolution | pooling.CPUPooling)


def _refuse_groups(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, convolution.CPUConvolution) and module.groups != 1:
            raise ValueError(
                f"{name or 'the network'} is a convolution in {module.groups} groups, which spconv does not have; "
                "keep it, or replace it by one with groups=1 first"
            )

"""Swap the convolutions of somebody's spconv network for ours, and back."""

from __future__ import annotations

from typing import TypeVar

import spconv.pytorch as spconv
from torch import nn

from pointcloud.nn import convolution

Network = TypeVar("Network", bound=nn.Module)

KINDS = ("SubMConv", "SparseConv", "SparseConvTranspose", "SparseInverseConv")
NAMES = tuple(f"{kind}{axes}d" for kind in KINDS for axes in (1, 2, 3, 4))


def convert(network: Network, to: str = "pointcloud") -> Network:
    """Change every convolution of spconv in `network` into the same layer of ours, or back with `to="spconv"`.

    Done in place and returned: parameters, hooks and names stay, so that optimisers and checkpoints go on. Subclasses
    of spconv's layers are left alone. ValueError on any other `to`.
    """
    if to not in ("pointcloud", "spconv"):
        raise ValueError(f"to is {to!r}; accepted: 'pointcloud', 'spconv'")
    source, target = (spconv, convolution) if to == "pointcloud" else (convolution, spconv)
    classes = {getattr(source, name): getattr(target, name) for name in NAMES}
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return network

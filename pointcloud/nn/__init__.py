"""Layers with the names, weights and tensors of spconv (extra `points`), and spiking neurons, which do without it."""

import importlib
from typing import TYPE_CHECKING, Any

from pointcloud.nn.neurons import LIF, PLIF, IntegerLIF, Rectified
from pointcloud.nn.surrogates import arctangent, fire, rectangular, sigmoid
from pointcloud.nn.unrolling import IntegerNeurons, SpikingLayer, unroll

if TYPE_CHECKING:
    from pointcloud.nn.conversion import convert
    from pointcloud.nn.convolution import (
        SparseConv1d,
        SparseConv2d,
        SparseConv3d,
        SparseConv4d,
        SparseConvTranspose1d,
        SparseConvTranspose2d,
        SparseConvTranspose3d,
        SparseConvTranspose4d,
        SparseInverseConv1d,
        SparseInverseConv2d,
        SparseInverseConv3d,
        SparseInverseConv4d,
        SubMConv1d,
        SubMConv2d,
        SubMConv3d,
        SubMConv4d,
    )
    from pointcloud.nn.pooling import (
        SparseAvgPool1d,
        SparseAvgPool2d,
        SparseAvgPool3d,
        SparseGlobalAvgPool,
        SparseGlobalMaxPool,
        SparseMaxPool1d,
        SparseMaxPool2d,
        SparseMaxPool3d,
        SparseMaxPool4d,
    )

__all__ = [
    "LIF",
    "PLIF",
    "IntegerLIF",
    "IntegerNeurons",
    "Rectified",
    "SparseAvgPool1d",
    "SparseAvgPool2d",
    "SparseAvgPool3d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseMaxPool1d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
    "SparseMaxPool4d",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConv4d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseConvTranspose4d",
    "SparseInverseConv1d",
    "SparseInverseConv2d",
    "SparseInverseConv3d",
    "SparseInverseConv4d",
    "SpikingLayer",
    "SubMConv1d",
    "SubMConv2d",
    "SubMConv3d",
    "SubMConv4d",
    "arctangent",
    "convert",
    "fire",
    "rectangular",
    "sigmoid",
    "unroll",
]


def __getattr__(name: str) -> Any:
    # spconv, which only these need, takes a second to import and is not there for every machine.
    if name in __all__:
        from pointcloud.nn import conversion, convolution, pooling

        return next(getattr(module, name) for module in (conversion, convolution, pooling) if hasattr(module, name))
    if name in ("convolution", "pooling"):
        return importlib.import_module(f"pointcloud.nn.{name}")
    raise AttributeError(f"module 'pointcloud.nn' has no attribute {name!r}")

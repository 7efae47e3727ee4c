"""Sparse convolution over kernel maps."""

from sparse_kernels.sparse_conv.api import sparse_conv
from sparse_kernels.sparse_conv.build import strided_map, submanifold_map, transposed_map
from sparse_kernels.sparse_conv.kernel_map import KernelMap

__all__ = ["KernelMap", "sparse_conv", "strided_map", "submanifold_map", "transposed_map"]

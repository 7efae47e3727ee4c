"""Kernels of sparse attention; tensors are laid out b h s d (batch, head, token, channel)."""

from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention import backend_reasons, block_sparse_attention

__all__ = ["BlockMap", "backend_reasons", "block_sparse_attention"]

"""Attention over the blocks of a BlockMap."""

from sparse_kernels.block_sparse_attention.api import (
    backend_reasons,
    block_sparse_attention,
    outruns_sdpa,
    precision_reasons,
)

__all__ = ["backend_reasons", "block_sparse_attention", "outruns_sdpa", "precision_reasons"]

"""Attention over the blocks of a BlockMap."""

from sparse_kernels.block_sparse_attention.api import (
    backend_reasons,
    block_sparse_attention,
    outruns_sdpa,
    precision_reasons,
)
from sparse_kernels.block_sparse_attention.summaries import Summaries

__all__ = ["Summaries", "backend_reasons", "block_sparse_attention", "outruns_sdpa", "precision_reasons"]

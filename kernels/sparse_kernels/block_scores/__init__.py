"""How much attention each block receives: exact mass, antidiagonal estimate, block means."""

from sparse_kernels.block_scores.api import antidiagonal_scores, block_mass
from sparse_kernels.block_scores.pooled import pooled

__all__ = ["antidiagonal_scores", "block_mass", "pooled"]

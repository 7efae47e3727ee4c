"""Add what was missing at some earlier step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall


@dataclass(frozen=True)
class CachedResidual:
    """Add what was missing at some earlier step (DiTFastAttn); kept on the output's device or the CPU."""

    residual: Float[Tensor, "b h s d"]

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output with the residual added."""
        return out + self.residual.to(out.device, non_blocking=True)


@dataclass(frozen=True)
class LowRankResidual:
    """Add the product of two thin matrices a head, the best approximation of a residual (QuantSparse)."""

    left: Float[Tensor, "b h s r"]
    right: Float[Tensor, "b h r d"]

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the output with the approximate residual added."""
        left, right = (x.to(out.device, non_blocking=True) for x in (self.left, self.right))
        return out + left @ right


def keep_residual(
    residual: Float[Tensor, "b h s d"], dtype: torch.dtype, *, rank: int | None = None, offload: bool = False
) -> CachedResidual | LowRankResidual:
    """Return the correction that adds `residual`, stored as `dtype`, whole or (below head_dim) of `rank`.

    `offload` moves what is stored on a CUDA device to pinned memory of the CPU.
    """
    if rank is None or rank >= residual.shape[-1]:
        return CachedResidual(_placed(residual.to(dtype), offload))
    # The leading eigenvectors of the small Gram matrix give the best rank exactly, and draw no random numbers.
    columns = residual.float()
    right = torch.linalg.eigh(columns.transpose(-1, -2) @ columns).eigenvectors[..., -rank:]
    left = columns @ right
    return LowRankResidual(_placed(left.to(dtype), offload), _placed(right.transpose(-1, -2).to(dtype), offload))


def _placed(x: Tensor, offload: bool) -> Tensor:
    if not offload or not x.is_cuda:
        return x.contiguous()
    # Copies in both directions are queued on one stream, so nobody has to wait for the pinned buffer.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)

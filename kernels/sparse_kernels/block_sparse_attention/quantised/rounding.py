"""What `precision` rounds, and how: the specification that every backend follows to the last bit.

int8: q and k by one scale a block of the map, k less its mean over the tokens of a head, which softmax does not
see (SageAttention, arXiv 2410.02367, section 4.2); weights and values stay as they are.
fp8: E4M3 for q and k by one scale a block, for v by one scale a channel of a head, for the weights, which lie in
0 to 1, by 1/448 (FPSAttention, arXiv 2506.04648). A value that is not finite makes all that share its scale NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._precision import without_autocast
from sparse_kernels.block_map import block_of_position

LARGEST = {"int8": 127.0, "fp8": 448.0}
DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
SMALLEST = 1e-30  # a block of zeros keeps a finite factor


class Rounded(NamedTuple):
    """Rows in the order of the map; each stands for values * scale."""

    values: Tensor  # b h s d, int8 or float8_e4m3fn
    scales: Float[Tensor, "b h s"]  # the same within a block


def key_mean(k: Float[Tensor, "b h s d"]) -> Float[Tensor, "b h d"]:
    """Return what int8 takes off every key before rounding, in float32."""
    return k.mean(2, dtype=torch.float32)


@without_autocast
def mean_logits(q: Float[Tensor, "b h s d"], mean: Float[Tensor, "b hkv d"], scale: float) -> Float[Tensor, "b h s"]:
    """Return what the mean takes off the logits, and so off the LSE, of each query."""
    mean = mean.repeat_interleave(q.shape[1] // mean.shape[1], 1)
    return (q.float() @ mean[..., None])[..., 0] * scale


def round_blocks(
    x: Float[Tensor, "b hx s d"], offsets: Int[Tensor, "#b #h n1"], order: Int[Tensor, "#b #h s"] | None,
    heads: int, precision: str, mean: Float[Tensor, "b hx d"] | None = None,
) -> Rounded:  # fmt: skip
    """Return the rows that stand at each position, rounded by max|x| of their block.

    Heads of keys are repeated up to `heads` where the blocks or the order belong to a query head.
    """
    rows = x.float() if mean is None else x.float() - mean[:, :, None]
    if offsets.shape[1] > 1 or (order is not None and order.shape[1] > 1):
        rows = rows.repeat_interleave(heads // x.shape[1], 1)
    if order is not None:
        rows = rows.gather(2, order[..., None].expand(*rows.shape))
    block = block_of_position(offsets, rows.shape[2]).expand(rows.shape[:3])
    largest = rows.new_zeros(*rows.shape[:2], offsets.shape[-1] - 1)
    largest = largest.scatter_reduce(2, block, rows.abs().amax(-1), "amax").gather(2, block)
    return Rounded(_round(rows, largest[..., None], precision), largest / LARGEST[precision])


def round_channels(v: Float[Tensor, "b h s d"]) -> tuple[Tensor, Float[Tensor, "b h d"]]:
    """Return v in E4M3, rounded by max|v| of each channel of a head, and the scales."""
    rows = v.float()
    largest = rows.abs().amax(2)
    return _round(rows, largest[:, :, None], "fp8"), largest / LARGEST["fp8"]


def round_weights(weights: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return weights of 0 to 1 as E4M3 holds them times 448."""
    return (weights * LARGEST["fp8"]).to(DTYPES["fp8"]).to(weights.dtype) / LARGEST["fp8"]


def _round(x: Tensor, largest: Tensor, precision: str) -> Tensor:
    # A number over a tensor would be a product with the reciprocal, which rounds twice.
    x = x * (torch.full_like(largest, LARGEST[precision]) / largest.clamp(min=SMALLEST))
    return (x.round() if precision == "int8" else x).to(DTYPES[precision])

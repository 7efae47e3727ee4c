"""The definition: torch only, any device, buffers of bounded size."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._precision import without_autocast
from sparse_kernels.block_scores.pooled import pooled
from sparse_kernels.kmeans import Clusters

ELEMENTS = 1 << 20  # of the largest buffer of a head: it stays in a processor's cache
LARGEST_EXPONENT = 30.0  # of a weight that is taken as it is; beyond it the cluster's weights share a factor


def can_run(x: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


@without_autocast
def centroid_log_error(
    queries: Float[Tensor, "b h nq d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    keys: Clusters,
    values: Float[Tensor, "b h nk d"],
    scale: float,
    precision: str = "float32",
) -> Float[Tensor, "b h nq nk"]:
    """Return the logarithms of the errors, in float32; written so that these stay exact where they vanish."""
    labels = keys.labels.gather(-1, keys.order)
    k, v = (take_rows(x, keys.order).float() for x in (k, v))
    rest, gap = k - take_rows(keys.centroids, labels), v - take_rows(values, labels)
    squared, constant = v.square().sum(-1, keepdim=True), gap.square().sum(-1, keepdim=True)
    cross = 2 * (v * gap).sum(-1, keepdim=True)
    errors = []
    for part in (queries * scale).split(max(1, ELEMENTS // k.shape[2]), 2):
        exponent = rest @ part.transpose(-1, -2)
        held = _largest(exponent, keys.offsets).sub_(LARGEST_EXPONENT).clamp_(min=0)  # of a cluster and a query
        ones = take_rows((-held).exp(), labels)  # what 1 is beside that factor, and the growth less it:
        growth = exponent.sub_(take_rows(held, labels)).expm1_().sub_(ones - 1)
        error = (squared * growth).add_(cross * ones).mul_(growth).add_(constant * ones.square_())
        sums = pooled(error, keys.offsets) * keys.sizes[..., None]
        errors.append((sums.clamp_(min=0).log_() + 2 * held).transpose(-1, -2))
    return torch.cat(errors, 2)


def _largest(x: Float[Tensor, "b h n c"], offsets: Int[Tensor, "b h nk1"]) -> Float[Tensor, "b h nk c"]:
    """Return the largest number of each block of rows, -inf for an empty one."""
    x, offsets = x.contiguous(), offsets.contiguous()
    return torch.segment_reduce(x, "max", offsets=offsets, axis=2, initial=-torch.inf, unsafe=True)


@without_autocast
def merge_centroids(
    q: Float[Tensor, "b h n d"],
    out: Float[Tensor, "b h n d"],
    lse: Float[Tensor, "b h n"],
    queries: Clusters,
    weights: Float[Tensor, "b h nq nk"],
    centroids: Float[Tensor, "b h nk d"],
    values: Float[Tensor, "b h nk d"],
    scale: float,
) -> Float[Tensor, "b h n d"]:
    """Return the merged output."""
    merged = torch.empty_like(out)
    keys = centroids.transpose(-1, -2) * scale
    step = max(1, ELEMENTS // keys.shape[3])
    for first in range(0, q.shape[2], step):
        rows = slice(first, first + step)
        logits = take_rows(weights, queries.labels[:, :, rows])
        logits += q[:, :, rows].float() @ keys
        exact = lse[:, :, rows, None]
        top = torch.maximum(logits.amax(-1, keepdim=True), exact)
        silent = top == -torch.inf  # nothing answers: what was computed stays
        top = top.masked_fill(silent, 0)
        logits.sub_(top).exp_()
        share = (exact - top).exp().masked_fill_(silent, 1)
        total = share + logits.sum(-1, keepdim=True)
        merged[:, :, rows] = ((out[:, :, rows].float() * share + logits @ values) / total).to(out.dtype)
    return merged


def take_rows(x: Float[Tensor, "b h k c"], index: Int[Tensor, "b h n"]) -> Float[Tensor, "b h n c"]:
    """Return rows of every head by index: the centroid of each token by its label, or tokens in an order."""
    # One lookup of whole rows in a flat table is several times faster than `gather` with an expanded index.
    first = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1) * x.shape[2]
    return x.flatten(0, 2).index_select(0, (index + first).flatten()).view(*index.shape, -1)

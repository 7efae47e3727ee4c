"""The definition of the block scores: torch only, any device; a chunk of rows against all keys at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._precision import without_autocast
from sparse_kernels._tensors import of_head

ROWS = 512  # query rows scored at once, at most: bounds memory, no (s s) tensor ever exists


def can_run(q: Tensor, k: Tensor) -> str | None:
    """Return None: the reference runs everything."""
    return None


@without_autocast
def block_mass(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    lse: Float[Tensor, "b h sq"],
    q_offsets: Int[Tensor, "#b #h nq1"],
    kv_offsets: Int[Tensor, "#b #h nk1"],
    q_order: Int[Tensor, "#b #h sq"] | None,
    kv_order: Int[Tensor, "#b #h skv"] | None,
    scale: float,
) -> Float[Tensor, "b h nq nk"]:
    """Return exp(q k scale - lse) summed over the rows and keys of each block."""
    batch, heads = q.shape[:2]
    mass = []
    for b in range(batch):
        for h in range(heads):
            rows, columns = q[b, h].float() * scale, k[b, h * k.shape[1] // heads].float()
            order, key_order = of_head(q_order, b, h), of_head(kv_order, b, h)
            mass.append(
                _mass_of_head(
                    rows if order is None else rows[order],
                    columns if key_order is None else columns[key_order],
                    lse[b, h] if order is None else lse[b, h, order],
                    of_head(q_offsets, b, h),
                    of_head(kv_offsets, b, h),
                )
            )
    return torch.stack(mass).unflatten(0, (batch, heads))


def _mass_of_head(q: Tensor, k: Tensor, lse: Tensor, q_offsets: Tensor, kv_offsets: Tensor) -> Float[Tensor, "nq nk"]:
    ends = q_offsets.tolist()
    mass = q.new_zeros(len(ends) - 1, len(kv_offsets) - 1)
    for i in range(len(ends) - 1):
        for start in range(ends[i], ends[i + 1], ROWS):
            rows = slice(start, min(start + ROWS, ends[i + 1]))
            weights = (k @ q[rows].T - lse[rows]).exp()
            mass[i] += torch.segment_reduce(weights, "sum", offsets=kv_offsets.long(), axis=0, initial=0).sum(-1)
    return mass


@without_autocast
def antidiagonal_scores(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    block: int,
    stride: int,
    scale: float,
    causal: bool,
    products: torch.dtype = torch.float32,
) -> Float[Tensor, "b h nq nk"]:
    """Return the softmax over reshaped tokens, summed over blocks of block / stride of them."""
    batch, heads = q.shape[:2]
    group = heads // k.shape[1]
    lengths = -(-q.shape[2] // stride), -(-k.shape[2] // stride)
    scores = []
    for b in range(batch):
        for h in range(heads):
            queries = _reshape(q[b, h].to(products), block, stride, reverse=True)
            keys = _reshape(k[b, h // group].to(products), block, stride, reverse=False)
            scores.append(_antidiagonals_of_head(queries, keys, lengths, block // stride, scale / stride, causal))
    return torch.stack(scores).unflatten(0, (batch, heads))


def _reshape(x: Float[Tensor, "s d"], block: int, stride: int, reverse: bool) -> Float[Tensor, "n sd"]:
    """Lay every `stride` tokens end to end, after filling up the last block with zeros."""
    tokens = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % block)).unflatten(0, (-1, stride))
    return (tokens.flip(1) if reverse else tokens).flatten(1)


def _antidiagonals_of_head(
    q: Float[Tensor, "n sd"],
    k: Float[Tensor, "m sd"],
    lengths: tuple[int, int],
    block: int,
    scale: float,
    causal: bool,
) -> Float[Tensor, "nq nk"]:
    """Add up the softmax by blocks; `lengths` are the reshaped tokens that are not padding alone."""
    blocks = []
    step = max(1, ROWS // block) * block  # whole blocks, of which a long one is scored in parts
    for start in range(0, q.shape[0], step):
        end = min(start + step, q.shape[0])
        parts = [
            _by_key_block(q, slice(first, min(first + ROWS, end)), k, lengths, block, scale, causal)
            for first in range(start, end, ROWS)
        ]
        blocks.append(torch.cat(parts).unflatten(0, (-1, block)).sum(1))
    return torch.cat(blocks)


def _by_key_block(
    q: Float[Tensor, "n sd"],
    part: slice,
    k: Float[Tensor, "m sd"],
    lengths: tuple[int, int],
    block: int,
    scale: float,
    causal: bool,
) -> Float[Tensor, "rows nk"]:
    """Return the softmax of some rows, added up by blocks of keys."""
    number = torch.arange(part.start, part.stop, device=q.device)[:, None]
    scores = (q[part] @ k.T).float() * scale
    if lengths[1] < k.shape[0] or causal:
        keys = torch.arange(k.shape[0], device=q.device)
        hidden = keys >= lengths[1]
        scores.masked_fill_(hidden | (keys > number) if causal else hidden, -torch.inf)
    weights = scores.softmax(-1)
    if lengths[0] < q.shape[0]:
        weights.masked_fill_(number >= lengths[0], 0)
    return weights.unflatten(1, (-1, block)).sum(-1)

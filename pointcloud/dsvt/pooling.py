"""Attention pooling between stages: the voxels of a coarser cell become one (DSVT, section 3.3)."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from pointcloud.dsvt.config import DSVTConfig


def pool_index(
    coordinates: Int[Tensor, "voxels 4"], shape: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Int[Tensor, "pooled 4"], Int[Tensor, " voxels"], Int[Tensor, " voxels"]]:
    """Return the coarse coordinates, ascending by (batch, x, y, z), and each voxel's row among them and its slot.

    `shape` is that of the coarse grid (x, y, z); the slot counts x slowest, z fastest.
    """
    key, slot = coordinates[:, 0].long(), torch.zeros_like(coordinates[:, 0], dtype=torch.int64)
    for column, extent, step in zip((3, 2, 1), shape, stride, strict=True):
        key = key * extent + coordinates[:, column] // step
        slot = slot * step + coordinates[:, column] % step
    key, row = key.unique(return_inverse=True)
    columns = []
    for extent in reversed(shape):
        columns.append(key % extent)
        key = key // extent
    return torch.stack([key, *columns], 1).to(coordinates.dtype), row, slot


class AttentionPooling(nn.Module):
    """Attention of a cell's maximum, as the query, to its slots; LayerNorm of the sum of both.

    As published, empty slots take part as zeros, in the maximum and in attention; `mask_empty_slots` takes them out
    of the attention. Voxels are projected, not slots: an empty slot's key is its embedding's.
    """

    def __init__(self, config: DSVTConfig, stage: int):
        super().__init__()
        self.stride, self.shape = config.stages[stage].stride, config.shapes[stage + 1]
        self.mask_empty_slots = config.mask_empty_slots
        self.self_attn = nn.MultiheadAttention(config.channels, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.channels)
        self.pos_embedding = nn.Parameter(torch.randn(prod(self.stride), config.channels) * 0.01)

    def forward(
        self, x: Float[Tensor, "voxels c"], coordinates: Int[Tensor, "voxels 4"]
    ) -> tuple[Float[Tensor, "pooled c"], Int[Tensor, "pooled 4"]]:
        """Return features and coordinates of the cells, in ascending order of (batch, x, y, z)."""
        pooled, row, slot = pool_index(coordinates, self.shape, self.stride)
        volume, heads = prod(self.stride), self.self_attn.num_heads
        place = row * volume + slot

        def spread(values: Float[Tensor, "voxels c"]) -> Float[Tensor, "pooled volume c"]:
            rows = values.new_zeros(len(pooled) * volume, values.shape[1]).index_copy(0, place, values)
            return rows.view(len(pooled), volume, -1)

        weights = self.self_attn.in_proj_weight.chunk(3)
        biases = self.self_attn.in_proj_bias.chunk(3)
        largest = spread(x).amax(1)
        query = linear(largest, weights[0], biases[0])
        key = spread(linear(x, weights[1])) + linear(self.pos_embedding, weights[1], biases[1])
        value = spread(linear(x, weights[2])) + biases[2]
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query[:, None], key, value))
        # One query and a few keys: plain products cost less here than a call of an attention kernel for each head.
        scores = (query * key).sum(-1) * query.shape[-1] ** -0.5
        if self.mask_empty_slots:
            filled = torch.zeros(len(pooled) * volume, dtype=torch.bool, device=x.device).index_fill(0, place, True)
            scores = scores.masked_fill(~filled.view(len(pooled), volume, 1), -torch.inf)
        attended = (scores.softmax(1)[..., None] * value).sum(1).flatten(1)
        return self.norm(self.self_attn.out_proj(attended) + largest), pooled

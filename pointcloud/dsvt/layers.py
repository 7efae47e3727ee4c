"""Encoder layer and block; attribute names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from pointcloud.dsvt.attention import SetAttention
from pointcloud.dsvt.sets import SetLayout


class AttentionLayer(nn.Module):
    """Set attention and feed-forward network, each with a residual and then a norm."""

    def __init__(self, channels: int, heads: int, feed_forward: int):
        super().__init__()
        self.self_attn = SetAttention(channels, heads, batch_first=True)
        self.linear1 = nn.Linear(channels, feed_forward)
        self.linear2 = nn.Linear(feed_forward, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self, x: Float[Tensor, "voxels c"], position: Float[Tensor, "voxels c"], layout: SetLayout
    ) -> Float[Tensor, "voxels c"]:
        x = self.norm1(x + self.self_attn(x, position, layout))
        return self.norm2(x + self.linear2(gelu(self.linear1(x))))


class EncoderLayer(nn.Module):
    """An attention layer inside one more residual and norm."""

    def __init__(self, channels: int, heads: int, feed_forward: int):
        super().__init__()
        self.win_attn = AttentionLayer(channels, heads, feed_forward)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, x: Float[Tensor, "voxels c"], position: Float[Tensor, "voxels c"], layout: SetLayout
    ) -> Float[Tensor, "voxels c"]:
        return self.norm(x + self.win_attn(x, position, layout))


class DSVTBlock(nn.Module):
    """Two encoder layers on the same windows: sets along y, then sets along x (DSVT, section 3.2)."""

    def __init__(self, channels: int, heads: int, feed_forward: int):
        super().__init__()
        self.encoder_list = nn.ModuleList(EncoderLayer(channels, heads, feed_forward) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "voxels c"],
        positions: Float[Tensor, "2 voxels c"],
        layouts: tuple[SetLayout, SetLayout],
    ) -> Float[Tensor, "voxels c"]:
        for layer, position, layout in zip(self.encoder_list, positions, layouts, strict=True):
            x = layer(x, position, layout)
        return x


def run_blocks(
    x: Float[Tensor, "voxels c"],
    blocks: Iterable[nn.Module],
    norms: Iterable[nn.Module],
    positions: Float[Tensor, "blocks 2 voxels c"],
    layouts: Iterable[tuple[SetLayout, SetLayout]],
) -> Float[Tensor, "voxels c"]:
    """Return the features after the blocks of a stage, each with its residual and norm."""
    for block, norm, position, pair in zip(blocks, norms, positions, layouts, strict=True):
        x = norm(x + block(x, position, pair))
    return x

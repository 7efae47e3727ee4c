"""Learned embeddings of the place in the window."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointcloud.dsvt.config import DSVTConfig
from pointcloud.dsvt.windows import Windows


class PositionEmbedding(nn.Module):
    """An MLP on the place relative to the window's centre, in voxels: x, y, and z unless the window is flat."""

    def __init__(self, axes: int, channels: int):
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Linear(axes, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self, windows: Windows) -> Float[Tensor, "voxels c"]:
        first: nn.Linear = self.position_embedding_head[0]  # pyright: ignore[reportAssignmentType]
        centre = torch.tensor(windows.size, device=windows.inside.device) / 2
        return self.position_embedding_head((windows.inside - centre)[:, : first.in_features].to(first.weight.dtype))


class PositionEmbeddings(nn.Module):
    """The embeddings of every stage, block and layer (0 along y, 1 along x).

    As published, layer i of every block takes the places in window configuration i, although both its layers attend
    in configuration (block mod 2): a slip known upstream, kept by default because the published weights grew with it.
    """

    def __init__(self, config: DSVTConfig):
        super().__init__()
        self.published_index = config.published_position_index
        self.posembed_layers = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(PositionEmbedding(2 if stage.window[2] == 1 else 3, config.channels) for _ in range(2))
                for _ in range(stage.blocks)
            )
            for stage in config.stages
        )

    def forward(self, windows: tuple[Windows, ...], stage: int, first_block: int) -> Float[Tensor, "blocks 2 voxels c"]:
        """Return the embeddings of one stage, whose first block has the number `first_block` in the network."""
        blocks: nn.ModuleList = self.posembed_layers[stage]  # pyright: ignore[reportAssignmentType]
        embedded = []
        for number, layers in enumerate(blocks, first_block):
            chosen = (0, 1) if self.published_index else (number % 2,) * 2
            pair = [layer(windows[index]) for layer, index in zip(layers, chosen, strict=True)]  # pyright: ignore
            embedded.append(torch.stack(pair))
        return torch.stack(embedded)

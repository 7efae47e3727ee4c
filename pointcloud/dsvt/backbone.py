"""The backbone: stages of blocks on sets, with attention pooling between them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pointcloud.dsvt.config import DSVTConfig
from pointcloud.dsvt.layers import DSVTBlock, run_blocks
from pointcloud.dsvt.pooling import AttentionPooling
from pointcloud.dsvt.positions import PositionEmbeddings
from pointcloud.dsvt.sets import SetLayout, partition
from pointcloud.dsvt.windows import split_windows


class DSVT(nn.Module):
    """The transformer on voxels; its state dict has the names of the published `backbone_3d`."""

    def __init__(self, config: DSVTConfig):
        super().__init__()
        self.config = config
        sizes = config.channels, config.heads, config.feed_forward
        self.input_layer = PositionEmbeddings(config)
        for number, stage in enumerate(config.stages):
            blocks = nn.ModuleList(DSVTBlock(*sizes) for _ in range(stage.blocks))
            norms = nn.ModuleList(nn.LayerNorm(config.channels) for _ in range(stage.blocks))
            self.add_module(f"stage_{number}", blocks)
            self.add_module(f"residual_norm_stage_{number}", norms)
            if stage.pooled:
                self.add_module(f"stage_{number}_reduction", AttentionPooling(config, number))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Float[Tensor, "voxels c"], coordinates: Int[Tensor, "voxels 4"], batch_size: int
    ) -> tuple[Float[Tensor, "pooled c"], Int[Tensor, "pooled 4"]]:
        """Return features and coordinates (batch z y x) after the last stage, in the input's order if none pools.

        ValueError when there are no voxels, when they lie outside the grid, and on a wrong number of channels.
        """
        self._check(features, coordinates, batch_size)
        for number, stage in enumerate(self.config.stages):
            positions, layouts = self.plan(coordinates, number)
            features = run_blocks(features, *self.blocks(number), positions, layouts)
            if stage.pooled:
                features, coordinates = getattr(self, f"stage_{number}_reduction")(features, coordinates)
        return features, coordinates

    def blocks(self, stage: int) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Return the blocks of a stage and the norms after them."""
        return getattr(self, f"stage_{stage}"), getattr(self, f"residual_norm_stage_{stage}")

    def plan(
        self, coordinates: Int[Tensor, "voxels 4"], stage: int
    ) -> tuple[Float[Tensor, "blocks 2 voxels c"], list[tuple[SetLayout, SetLayout]]]:
        """Return what the blocks of a stage need beside features: position embeddings and the sets of each block."""
        config = self.config.stages[stage]
        first = sum(earlier.blocks for earlier in self.config.stages[:stage])
        shape = self.config.shapes[stage]
        windows = tuple(split_windows(coordinates, shape, *choice) for choice in config.configurations)
        numbers = [number % 2 for number in range(first, first + config.blocks)]
        layouts = {number: partition(windows[number], config.set_size).layouts() for number in set(numbers)}
        return self.input_layer(windows, stage, first), [layouts[number] for number in numbers]

    def _check(self, features: Tensor, coordinates: Tensor, batch_size: int) -> None:
        if not len(coordinates):
            raise ValueError("no voxels: every point is outside the grid, or there are no points")
        if coordinates.shape != (len(features), 4) or features.shape[1:] != (self.config.channels,):
            raise ValueError(
                f"features must be (voxels, {self.config.channels}) and coordinates (voxels, 4), "
                f"got {tuple(features.shape)} and {tuple(coordinates.shape)}"
            )
        limit = [batch_size, *reversed(self.config.shapes[0])]
        if bool(((coordinates < 0) | (coordinates >= torch.tensor(limit, device=coordinates.device))).any()):
            raise ValueError(
                f"coordinates (batch z y x) must be in [0, {limit}), got up to {coordinates.amax(0).tolist()}"
            )

"""E-3DSNN (Qiu et al., AAAI 2025, arXiv 2412.07360): spiking sparse convolution for classification and segmentation."""

from __future__ import annotations

from jaxtyping import Float, Int, Int32
from spconv.pytorch.core import SparseConvTensor
from torch import Tensor, nn

from pointcloud.e3dsnn.config import E3DSNNConfig
from pointcloud.e3dsnn.layers import Down, Stem, Up
from pointcloud.scatter import scatter


class Encoder(nn.Module):
    """The stem and the stages, each at half the grid of the one before."""

    def __init__(self, config: E3DSNNConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.values, config.stem, config.levels)
        inputs = (config.stem, *config.channels)
        self.stages = nn.ModuleList(
            Down(inputs[stage], channels, config.depths[stage], stage, config.levels)
            for stage, channels in enumerate(config.channels)
        )

    def forward(
        self, features: Float[Tensor, "voxels values"], coordinates: Int32[Tensor, "voxels 4"], batch_size: int
    ) -> list[SparseConvTensor]:
        """Return the potentials after the stem and every stage; coordinates are [batch, z, y, x], from 0 on.

        ValueError where there is no voxel, or one has another number of values than the network takes.
        """
        if features.shape[1] != self.config.values:
            raise ValueError(f"voxels have {features.shape[1]} values, this network takes {self.config.values}")
        if not len(features):
            raise ValueError("there is no voxel; give a cloud of one point or more")
        # A whole number of the coarsest voxels: a halved odd grid would lose its last row.
        coarse = 2 ** len(self.stages)
        shape = [(int(last) // coarse + 1) * coarse for last in coordinates[:, 1:].amax(0)]
        potentials = [self.stem(SparseConvTensor(features, coordinates, shape, batch_size))]
        for stage in self.stages:
            potentials.append(stage(potentials[-1]))
        return potentials


class Classifier(nn.Module):
    """One class a cloud: a linear map of the last potential, averaged over its voxels.

    `continuous` names the layers that read real numbers and not spikes.
    """

    continuous = ("encoder.stem.first", "head")

    def __init__(self, config: E3DSNNConfig) -> None:
        super().__init__()
        if config.decoder:
            raise ValueError(f"a classifier has no decoder, got {config.decoder}; leave it out or take a Segmenter")
        self.config = config
        self.encoder = Encoder(config)
        self.head = nn.Linear(config.channels[-1], config.classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(
        self, features: Float[Tensor, "voxels values"], coordinates: Int32[Tensor, "voxels 4"], batch_size: int
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of every cloud; errors as those of the encoder, and where a cloud has no voxel."""
        last = self.encoder(features, coordinates, batch_size)[-1]
        return self.head(mean_of_clouds(last.features, last.indices[:, 0], batch_size))


class Segmenter(nn.Module):
    """One class a voxel: the decoder leads back to the finest grid, stage by stage.

    `continuous` names the layers that read real numbers and not spikes.
    """

    continuous = ("encoder.stem.first", "head")

    def __init__(self, config: E3DSNNConfig) -> None:
        super().__init__()
        if not config.decoder:
            raise ValueError("a segmenter needs the channels of its decoder's stages; give decoder=(...)")
        self.config = config
        self.encoder = Encoder(config)
        skips, inputs = (config.stem, *config.channels[:-1]), (*config.decoder[1:], config.channels[-1])
        self.stages = nn.ModuleList(
            Up(inputs[stage], skips[stage], channels, stage, config.levels)
            for stage, channels in enumerate(config.decoder)
        )
        self.head = nn.Linear(config.decoder[0], config.classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(
        self, features: Float[Tensor, "voxels values"], coordinates: Int32[Tensor, "voxels 4"], batch_size: int
    ) -> Float[Tensor, "voxels classes"]:
        """Return the logits of every voxel; errors as those of the encoder."""
        *skips, x = self.encoder(features, coordinates, batch_size)
        for stage in reversed(range(len(self.stages))):
            x = self.stages[stage](x, skips[stage])
        return self.head(x.features)


def mean_of_clouds(
    features: Float[Tensor, "voxels channels"], batch: Int[Tensor, " voxels"], batch_size: int
) -> Float[Tensor, "batch channels"]:
    """Return the mean of every cloud's voxels; ValueError where a cloud has none."""
    counts = batch.bincount(minlength=batch_size)
    if len(counts) > batch_size or not counts.all():
        raise ValueError(f"every one of the {batch_size} clouds must have a voxel; they have {counts.tolist()}")
    return scatter(features, batch.long(), batch_size, "mean")

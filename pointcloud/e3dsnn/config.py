"""Sizes of the published networks and of our small ones."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class E3DSNNConfig:
    """An encoder, and for segmentation a decoder; `values` counts the numbers of a voxel that go in.

    `channels` and `depths` have one entry a stage, each of which halves the grid first. `decoder` are the channels of
    the decoder's stages, the finest first; none for a classifier. Neurons send integers of 0 to `levels`; with 0 they
    are ReLUs, the same network without spikes. ValueError on sizes that do not fit.
    """

    values: int
    classes: int
    stem: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    decoder: tuple[int, ...] = ()
    levels: int = 4

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.depths) or not self.channels:
            raise ValueError(f"channels {self.channels} and depths {self.depths} must have one entry a stage, both")
        if self.decoder and len(self.decoder) != len(self.channels):
            raise ValueError(f"decoder {self.decoder} must have as many stages as the encoder, {len(self.channels)}")
        if min(self.values, self.classes, self.stem, *self.channels, *self.decoder) < 1 or min(self.depths) < 0:
            raise ValueError(f"values, classes and channels must be 1 or more, depths 0 or more, got {self}")
        if self.levels < 0:
            raise ValueError(f"levels must be 1 or more, or 0 for a network that does not spike, got {self.levels}")


# ModelNet40 from points with normals, SemanticKITTI from points with intensity (arXiv 2412.07360, published code).
TINY = E3DSNNConfig(6, 40, 16, (16, 32, 64, 128), (1, 1, 1, 1))
SMALL = replace(TINY, stem=24, channels=(24, 48, 96, 160))
LARGE = replace(TINY, stem=64, channels=(64, 128, 128, 256), depths=(2, 2, 2, 2))
HUGE = replace(LARGE, channels=(96, 192, 288, 384))
SEGMENTATION = replace(LARGE, values=4, classes=19, decoder=(256, 256, 256, 256))

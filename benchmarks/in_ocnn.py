"""The submanifold convolution of ocnn (MIT, pure torch on a CPU), on the voxels that are there."""

from __future__ import annotations

import importlib
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor


class Octree:
    """A convolution of 3 x 3 x 3 over an octree of the voxels, on all threads of torch.

    It takes and gives features in the order of its octree's nodes: `order` brings a voxel's row there. ValueError where
    no octree of `depth` holds the grid.
    """

    def __init__(self, coordinates: Int[Tensor, "n 4"], weight: Float[Tensor, "out 3 3 3 in"], depth: int = 9):
        if coordinates.max() >= 2**depth:
            raise ValueError(
                f"the octree has {2**depth} voxels a side, these reach {coordinates.max()}; take a larger depth"
            )
        self.library: Any = importlib.import_module("ocnn")
        self.coordinates, self.depth = coordinates, depth
        self.layer = self.library.nn.OctreeConv(weight.shape[-1], weight.shape[0], [3], nempty=True)
        self.layer.weights.data = weight.detach().permute(1, 2, 3, 4, 0).flatten(0, 2).contiguous()
        self.weight = self.layer.weights
        self.pairs()
        x, y, z, _ = self.octree.xyzb(depth, nempty=True)
        side = 2**depth
        places = (coordinates[:, 1].long() * side + coordinates[:, 2]) * side + coordinates[:, 3]
        self.order = places.argsort()[((x * side + y) * side + z).argsort().argsort()]

    def pairs(self) -> None:
        """Build the octree and every node's neighbours."""
        points = self.coordinates[:, 1:].float() / 2 ** (self.depth - 1) - 1
        self.octree = self.library.octree.Octree(self.depth)
        self.octree.build_octree(self.library.octree.Points(points))
        self.octree.construct_all_neigh()
        self.octree.nempty_neigh(self.depth)

    def forward(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        """Return the convolution of features in the octree's order."""
        return self.layer(x, self.octree, self.depth)


def reason_against_ocnn() -> str | None:
    """Return why ocnn cannot be imported, or None."""
    try:
        importlib.import_module("ocnn")
    except (ImportError, RuntimeError) as error:  # a torchvision of another build of torch
        return str(error)
    return None

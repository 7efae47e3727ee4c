"""A classifier or segmenter from points to logits: the cloud into the unit ball, voxels, E-3DSNN."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pointcloud.classification.config import ModelConfig
from pointcloud.e3dsnn import Classifier, Segmenter
from pointcloud.points import PointCloud
from pointcloud.scatter import scatter
from pointcloud.voxels import VoxelGrid, voxelise
from pointcloud.weights import fill, read_weights, weight_bytes, write_weights


class CloudModel(nn.Module):
    """E-3DSNN (arXiv 2412.07360) on clouds of any size and place: one class a cloud, or with a decoder one a point."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.network = (Segmenter if config.network.decoder else Classifier)(config.network)

    def forward(
        self, xyz: Float[Tensor, "points 3"], batch: Int[Tensor, " points"], batch_size: int
    ) -> Float[Tensor, "rows classes"]:
        """Return the logits of every cloud, or of every point; ValueError where a cloud has no point, or NaN."""
        xyz = in_unit_ball(xyz, batch, batch_size)
        side = 2 / self.config.cells
        grid = VoxelGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (side, side, side))
        found = voxelise(xyz, batch, grid, batch_size)
        mean = scatter(xyz, found.point_voxel, len(found.coordinates), "mean")
        centre = (found.coordinates[:, [3, 2, 1]] + 0.5) * side - 1
        # In units of a voxel's half side, so that both halves of the values have one scale.
        values = torch.cat([mean, (mean - centre) * self.config.cells], 1)
        logits = self.network(values, found.coordinates, batch_size)
        return logits[found.point_voxel] if self.config.task == "segments" else logits

    @torch.inference_mode()
    def predict(self, cloud: PointCloud) -> Float[Tensor, "rows classes"]:
        """Return the probabilities of a cloud's classes, one row, or those of each point; on the weights' device."""
        xyz = cloud.xyz.to(next(self.parameters()).device)
        training = self.training
        try:
            logits = self.eval()(xyz, torch.zeros(len(xyz), dtype=torch.int64, device=xyz.device), 1)
        finally:
            self.train(training)
        return logits.softmax(1)

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, replacing an old file at once."""
        write_weights(path, self, "classification", self.config.to_json())

    def fingerprint(self) -> str:
        """Return 16 digits that change with weights and configuration, and not with the device."""
        return sha256(weight_bytes(self, "classification", self.config.to_json())).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> CloudModel:
        """Return the model in a file of `save`, in evaluation mode.

        FileNotFoundError if there is none; ValueError if it is no such file, or its weights do not fit.
        """
        text, state = read_weights(path, "classification", "shape or segment", "CloudModel.save")
        model = cls(ModelConfig.from_json(text))
        fill(model, state, path)
        return model.eval()


def in_unit_ball(
    xyz: Float[Tensor, "points 3"], batch: Int[Tensor, " points"], batch_size: int
) -> Float[Tensor, "points 3"]:
    """Return every cloud with the middle of its bounding box at 0, and its farthest point just inside distance 1.

    ValueError where a cloud has no point.
    """
    counts = torch.bincount(batch, minlength=batch_size)
    if len(counts) > batch_size or not counts.all():
        raise ValueError(f"every one of the {batch_size} clouds must have a point; they have {counts.tolist()}")
    low, high = -scatter(-xyz, batch, batch_size, "max"), scatter(xyz, batch, batch_size, "max")
    xyz = xyz - ((low + high) / 2)[batch]
    farthest = scatter(xyz.norm(dim=1), batch, batch_size, "max").clamp(min=1e-6)
    return xyz / (1.0001 * farthest)[batch, None]

"""The detector: voxel features, backbone, view from above, head."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pointcloud.boxes import Detections
from pointcloud.detection.backbones import make_backbone
from pointcloud.detection.bev import BEVBackbone
from pointcloud.detection.canvas import to_bev
from pointcloud.detection.decode import decode
from pointcloud.detection.detector_config import DetectorConfig
from pointcloud.detection.head import CenterHead
from pointcloud.detection.loss import detection_losses
from pointcloud.detection.targets import make_targets
from pointcloud.points import PointCloud
from pointcloud.weights import fill, read_weights, weight_bytes, write_weights


class Detector(nn.Module):
    """3-D object detection with DSVT (arXiv 2301.06051), or with the spiking backbone of E-3DSNN (arXiv 2412.07360).

    Of the latter only the backbone spikes: what reads its map, from the first convolution on, takes real numbers.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.vfe, self.backbone, channels = make_backbone(config.backbone)
        self.bev = BEVBackbone(config.bev, channels)
        self.head = CenterHead(config.head, self.bev.channels)

    def forward(
        self, points: Float[Tensor, "points values"], batch: Int[Tensor, " points"], batch_size: int
    ) -> dict[str, Float[Tensor, "batch _ y x"]]:
        """Return the head's outputs; ValueError when no point is inside the grid."""
        features, coordinates = self.vfe(points, batch, batch_size)
        features, coordinates = self.backbone(features, coordinates, batch_size)
        return self.head(self.bev(to_bev(features, coordinates, batch_size, self.config.grid)))

    def losses(
        self,
        outputs: dict[str, Float[Tensor, "batch _ y x"]],
        boxes: list[Float[Tensor, "_ 7"]],
        labels: list[Int[Tensor, " _"]],
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the named losses, to be summed, of a batch with these true boxes in each sample."""
        head, grid = self.config.head, self.config.grid
        return detection_losses(outputs, make_targets(boxes, labels, head, grid), head, grid)

    @torch.inference_mode()
    def detect(self, cloud: PointCloud, threshold: float | None = None) -> Detections:
        """Return what is in a cloud, by falling score, none below `threshold` (the configuration's by default).

        Works in evaluation mode and on the device of the weights. ValueError if the cloud lacks an attribute that the
        network takes or has one that is not finite, or no point lies in its grid.
        """
        points = cloud.values(self.config.attributes)
        bad = (~points[:, 3:].isfinite()).sum(0).tolist()
        for name, count in zip(self.config.attributes, bad, strict=False):
            if count:  # it would spread over the whole map, in which nothing is found then
                raise ValueError(f"{name} is NaN or infinite in {count} of {len(points)} points; remove these points")
        points = points.to(next(self.parameters()).device)
        training = self.training
        try:
            outputs = self.eval()(points, torch.zeros(len(points), dtype=torch.int64, device=points.device), 1)
        finally:
            self.train(training)
        return decode(outputs, self.config.head, self.config.grid, threshold)[0]

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, replacing an old file at once."""
        write_weights(path, self, "config", self.config.to_json())

    def fingerprint(self) -> str:
        """Return 16 digits that change with weights and configuration, and not with the device."""
        return sha256(weight_bytes(self, "config", self.config.to_json())).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path, config: DetectorConfig | None = None) -> Detector:
        """Return the detector in a file of `save`, in evaluation mode.

        FileNotFoundError if there is none; ValueError if it is no such file, or not of the configuration asked for.
        """
        text, state = read_weights(path, "config", "detector", "Detector.save")
        saved = DetectorConfig.from_json(text)
        if config is not None and config != saved:
            raise ValueError(f"{path} holds a detector of another configuration than asked for; leave config out")
        detector = cls(saved)
        fill(detector, state, path)
        return detector.eval()

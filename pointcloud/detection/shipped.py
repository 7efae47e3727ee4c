"""The detectors that come with the package, and a scan to try them on."""

from __future__ import annotations

from pathlib import Path

from pointcloud.detection.detector import Detector
from pointcloud.detection.detector_config import MODELS

EMBEDDED = Path(__file__).parents[1] / "embedded"
SAMPLE = EMBEDDED / "sample.bin"  # the cloud of make_scene(1_000_003), in KITTI's form


def load_detector(model: str) -> Detector:
    """Return a detector by its name or the path of its file; ValueError if there is no such model."""
    shipped = {name: file for name in MODELS if (file := EMBEDDED / f"{name}.safetensors").is_file()}
    file = shipped.get(model, Path(model))
    if not file.is_file():
        raise ValueError(f"unknown model {model!r}; shipped: {', '.join(shipped) or 'none'}; or give a file's path")
    return Detector.load(file)

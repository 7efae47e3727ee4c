"""Small models for tests, with random weights."""

from __future__ import annotations

import torch

from pointcloud.classification import CloudModel, ModelConfig
from pointcloud.e3dsnn import E3DSNNConfig
from pointcloud.shapes import PARTS, SHAPES


def tiny_config(task: str, levels: int = 4) -> ModelConfig:
    classes = SHAPES if task == "shapes" else PARTS
    decoder = () if task == "shapes" else (8, 8)
    return ModelConfig(classes, E3DSNNConfig(6, len(classes), 8, (8, 16), (0, 0), decoder, levels), cells=16)


def tiny_model(task: str, levels: int = 4) -> CloudModel:
    torch.manual_seed(0)
    return CloudModel(tiny_config(task, levels)).eval()

"""The exported blocks in onnxruntime against torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pointcloud.dsvt import DSVT, DSVTConfig, export_blocks
from pointcloud.dsvt.export import block_inputs
from pointcloud.dsvt.layers import run_blocks
from tests.pointcloud.dsvt.voxel_scenes import FLAT, TALL, random_voxels

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's own exporter copies a class that torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")


@pytest.mark.parametrize("config,stage", ((FLAT, 0), (TALL, 1), (TALL, 2)), ids=("flat", "two-blocks", "one-block"))
def test_exported_blocks_equal_torch_at_other_sizes(config: DSVTConfig, stage: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DSVT(config)
    shape = tuple(min(size, 20) for size in config.shapes[stage])
    with pytest.raises(ValueError, match="call eval"):
        export_blocks(model, tmp_path / "blocks.onnx", random_voxels(shape, 120), stage)
    model.eval()
    export_blocks(model, tmp_path / "blocks.onnx", random_voxels(shape, 120), stage)
    session = onnxruntime.InferenceSession(tmp_path / "blocks.onnx", providers=["CPUExecutionProvider"])
    for voxels in (120, 350, 1):
        coordinates = random_voxels(shape, voxels, seed=voxels)
        features = torch.randn(len(coordinates), config.channels)
        with torch.no_grad():
            expected = run_blocks(features, *model.blocks(stage), *model.plan(coordinates, stage))
            inputs = block_inputs(model, features, coordinates, stage)
        out = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        assert out.shape == expected.shape and abs(out - expected.numpy()).max() < 1e-5

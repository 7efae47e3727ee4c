"""The transformer blocks as ONNX; voxels, partition and positions stay in torch, as in the published deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pointcloud.dsvt.backbone import DSVT
from pointcloud.dsvt.layers import run_blocks
from pointcloud.dsvt.sets import SetLayout


class StageBlocks(nn.Module):
    """The blocks of one stage, with the layouts of both orders as plain tensors, for each window configuration."""

    def __init__(self, model: DSVT, stage: int):
        super().__init__()
        self.stack, self.norms = model.blocks(stage)

    def forward(
        self, features: Float[Tensor, "voxels c"], positions: Float[Tensor, "blocks 2 voxels c"], *layouts: Tensor
    ) -> Float[Tensor, "voxels c"]:
        """Take slots (2 sets longest), present (sets longest) and places (2 voxels) of each configuration in turn."""
        pairs = []
        for slots, present, places in zip(layouts[::3], layouts[1::3], layouts[2::3], strict=True):
            pairs.append(tuple(SetLayout(slots[order], present, places[order]) for order in range(2)))
        numbers = range(len(positions))
        return run_blocks(features, self.stack, self.norms, positions, [pairs[n % len(pairs)] for n in numbers])


def block_inputs(
    model: DSVT, features: Float[Tensor, "voxels c"], coordinates: Int[Tensor, "voxels 4"], stage: int = 0
) -> dict[str, Tensor]:
    """Return the inputs of the exported blocks by name."""
    positions, layouts = model.plan(coordinates, stage)
    inputs = {"features": features, "positions": positions}
    for number, (along_y, along_x) in enumerate(layouts[:2]):
        inputs[f"slots_{number}"] = torch.stack([along_y.slots, along_x.slots])
        inputs[f"present_{number}"] = along_y.present
        inputs[f"places_{number}"] = torch.stack([along_y.places, along_x.places])
    return inputs


def export_blocks(model: DSVT, path: Path | str, coordinates: Int[Tensor, "voxels 4"], stage: int = 0) -> None:
    """Write the blocks of a stage as ONNX, inputs as `block_inputs` names them, traced at these coordinates.

    The number of voxels, and of sets and their longest in each window configuration, may differ at run time; for
    tracing, there must be at least two sets and a set of at least two voxels. ValueError while the model trains.
    """
    if model.training:
        raise ValueError("the model is in training mode: call eval() before the export")
    features = torch.zeros(len(coordinates), model.config.channels, device=coordinates.device)
    with torch.no_grad():
        inputs = block_inputs(model, features, coordinates, stage)
        axes = {name: _axes(name) for name in inputs}
        named = axes.pop("features"), axes.pop("positions"), tuple(axes.values())
        torch.onnx.export(
            StageBlocks(model, stage).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["out"],
            dynamic_shapes=named,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _axes(name: str) -> dict[int, Any]:
    """Return the axes of an input that may change, each length named once."""
    free = torch.export.Dim.DYNAMIC
    field, _, number = name.partition("_")
    slots = {1: f"sets_{number}", 2: f"longest_{number}"}
    named = {"features": {0: "voxels"}, "positions": {2: free}, "slots": slots}
    return (named | {"present": {0: free, 1: free}, "places": {1: free}})[field]

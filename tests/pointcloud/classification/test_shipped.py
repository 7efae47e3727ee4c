"""The models that ship: they know clouds that they never saw, by integers and by spikes alike."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

pytest.importorskip("spconv.pytorch", exc_type=ImportError)
pytest.importorskip("open3d", exc_type=ImportError)

from pointcloud.classification.shipped import DEFAULTS, load_model
from pointcloud.nn import unroll
from pointcloud.shapes import ShapeClouds

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.mark.parametrize(("task", "least"), [("shapes", 0.8), ("segments", 0.85)])
def test_unseen_clouds_are_told_apart(task: Literal["shapes", "segments"], least: float) -> None:
    model, right = load_model(DEFAULTS[task], task), []
    for sample in ShapeClouds(task, "evaluation", 12):
        label = sample.cloud.attributes["label"] if task == "segments" else torch.tensor([sample.label])
        right.append((model.predict(sample.cloud).argmax(1) == label).float().mean().item())
    assert sum(right) / len(right) >= least


@pytest.mark.parametrize("task", ["shapes", "segments"])
def test_integers_and_spikes_give_the_same(task: Literal["shapes", "segments"]) -> None:
    model = load_model(DEFAULTS[task], task).double()
    xyz = next(iter(ShapeClouds(task, "evaluation", 1))).cloud.xyz.double()
    batch = torch.zeros(len(xyz), dtype=torch.int64)
    with torch.no_grad():
        integers = model(xyz, batch, 1)
        spikes = unroll(model)(xyz, batch, 1)
    assert (integers - spikes).abs().max() < 1e-10

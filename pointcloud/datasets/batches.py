"""Clouds changed by a recipe, cut into cells, and packed as E-3DSNN takes them."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from pointcloud.boxes.geometry import rotate
from pointcloud.datasets.labelled import LabelledCloud
from pointcloud.datasets.recipes import CloudRecipe
from pointcloud.points import PointCloud


class VoxelBatch(NamedTuple):
    """Voxels of all clouds as [batch, z, y, x] from 0 on, the class of each cloud or voxel, and each point's voxel."""

    features: Float[Tensor, "voxels values"]
    coordinates: Int32[Tensor, "voxels 4"]
    labels: Int[Tensor, " rows"]
    point_voxel: Int[Tensor, " points"]
    size: int


def collate(
    samples: list[LabelledCloud], recipe: CloudRecipe, *, training: bool, generator: torch.Generator | None = None
) -> VoxelBatch:
    """Return samples as a batch, in training changed at random; a voxel is one of its points, drawn at random.

    Labels are empty where the samples have none. ValueError on samples of no point, or of both kinds together.
    """
    if training:
        samples = [LabelledCloud(augment(cloud, recipe, generator), label) for cloud, label in samples]
        if samples[0].label is None and torch.rand((), generator=generator) < recipe.mixes:
            samples = [_joined(samples[first : first + 2]) for first in range(0, len(samples), 2)]
    else:
        samples = [LabelledCloud(viewed(cloud, recipe, 0.0), label) for cloud, label in samples]
    parts = [one_point_a_cell(cloud.xyz, recipe.cell, generator) for cloud, _ in samples]
    features = [cloud.values(recipe.attributes)[rows] for (cloud, _), (rows, _, _) in zip(samples, parts, strict=True)]
    coordinates = [torch.nn.functional.pad(cells, (1, 0), value=i) for i, (_, cells, _) in enumerate(parts)]
    starts = torch.tensor([0, *(len(rows) for rows, _, _ in parts)]).cumsum(0).tolist()
    point_voxel = [voxel + start for (_, _, voxel), start in zip(parts, starts, strict=False)]
    labels = _labels(samples, [rows for rows, _, _ in parts])
    return VoxelBatch(torch.cat(features), torch.cat(coordinates), labels, torch.cat(point_voxel), len(samples))


def augment(cloud: PointCloud, recipe: CloudRecipe, generator: torch.Generator | None = None) -> PointCloud:
    """Turn, limit, scale, shift, flip and jitter a cloud at random, in the published order; normals go along."""
    turned, angle, scale = torch.rand(3, generator=generator).tolist()
    shift, flips = 2 * torch.rand(3, generator=generator) - 1, torch.rand(2, generator=generator) < recipe.flips
    cloud = viewed(cloud, recipe, (2 * angle - 1) * pi if turned < recipe.turns else 0.0)
    low, high = recipe.scales
    signs = torch.cat([1 - 2 * flips.float(), torch.ones(1)])
    xyz = (cloud.xyz * (low + (high - low) * scale) + recipe.largest_shift * shift) * signs
    if recipe.jitter:
        noise = recipe.jitter * torch.randn(xyz.shape, generator=generator)
        xyz = xyz + noise.clamp(-recipe.largest_jitter, recipe.largest_jitter)
    return PointCloud(xyz, _with_normals(cloud, lambda normal: normal * signs))


def viewed(cloud: PointCloud, recipe: CloudRecipe, angle: float) -> PointCloud:
    """Return a cloud as a test sees it, turned about z by `angle` radians: in the unit ball, or inside the limits."""
    xyz = cloud.xyz
    if recipe.unit_ball:
        xyz = xyz - xyz.mean(0)
        xyz = xyz / xyz.norm(dim=1).max().clamp(min=1e-6)
    if angle:
        xyz = _turned(xyz, angle)
        cloud = PointCloud(cloud.xyz, _with_normals(cloud, lambda normal: _turned(normal, angle)))
    if recipe.limits:
        xyz = torch.minimum(torch.maximum(xyz, xyz.new_tensor(recipe.limits[0])), xyz.new_tensor(recipe.limits[1]))
    return PointCloud(xyz, cloud.attributes)


def one_point_a_cell(
    xyz: Float[Tensor, "points 3"], cell: float, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " voxels"], Int32[Tensor, "voxels 3"], Int[Tensor, " points"]]:
    """Return a random point of every cell with points in it, the cells as z y x from 0 on, and each point's cell.

    ValueError where there is no point, or the cloud spans more than 2,000,000 cells along an axis.
    """
    if not len(xyz):
        raise ValueError("a cloud has no point; leave it out")
    place = (xyz / cell).floor()
    place = place - place.amin(0)
    if not place.max() < 2e6:  # also true of NaN; three of them fit into an integer
        raise ValueError(f"a cloud spans {place.max().item():.0f} cells of {cell}; remove its far or infinite points")
    cells = place.long().flip(1)
    nz, ny, nx = (cells.amax(0) + 1).tolist()
    keys = (cells[:, 0] * ny + cells[:, 1]) * nx + cells[:, 2]
    order = torch.randperm(len(xyz), generator=generator)
    order = order[keys[order].argsort(stable=True)]
    _, point_voxel, counts = keys.unique(return_inverse=True, return_counts=True)
    rows = order[counts.cumsum(0) - counts]
    return rows, cells[rows].int(), point_voxel


def _turned(xyz: Float[Tensor, "points 3"], angle: float) -> Float[Tensor, "points 3"]:
    return torch.cat([rotate(xyz[:, :2], xyz.new_full((len(xyz),), angle)), xyz[:, 2:]], 1)


def _with_normals(cloud: PointCloud, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(column) if name == "normal" else column for name, column in cloud.attributes.items()}


def _joined(samples: list[LabelledCloud]) -> LabelledCloud:
    """Return clouds as one (mix3D, arXiv 2110.02210)."""
    first = samples[0].cloud
    attributes = {name: torch.cat([each.cloud.attributes[name] for each in samples]) for name in first.attributes}
    return LabelledCloud(PointCloud(torch.cat([each.cloud.xyz for each in samples]), attributes), None)


def _labels(samples: list[LabelledCloud], rows: list[Tensor]) -> Int[Tensor, " rows"]:
    of_clouds = [label for _, label in samples if label is not None]
    if of_clouds and len(of_clouds) < len(samples):
        raise ValueError("some samples have a class of their own and some have one a point; give one kind")
    if of_clouds:
        return torch.tensor(of_clouds)
    if not all("label" in cloud.attributes for cloud, _ in samples):
        return torch.zeros(0, dtype=torch.int64)
    return torch.cat([cloud.attributes["label"][row] for (cloud, _), row in zip(samples, rows, strict=True)])

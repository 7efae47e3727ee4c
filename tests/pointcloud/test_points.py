"""What a point cloud is made of, and the rows it gives to networks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pointcloud.points import PointCloud


def test_values_are_xyz_and_then_the_named_attributes() -> None:
    xyz, color = torch.randn(4, 3), torch.rand(4, 3)
    cloud = PointCloud(xyz, {"intensity": torch.rand(4).double(), "ring": torch.arange(4), "color": color})
    values = cloud.values(("ring", "color"))
    assert len(cloud) == 4 and values.dtype == torch.float32
    assert torch.equal(values, torch.cat([xyz, torch.arange(4.0)[:, None], color], 1))
    assert torch.equal(cloud.values(()), xyz)
    assert PointCloud(torch.zeros(0, 3), {"ring": torch.zeros(0)}).values(("ring",)).shape == (0, 4)


def test_missing_attributes_are_named() -> None:
    with pytest.raises(ValueError, match="no time, label; attributes at hand: ring"):
        PointCloud(torch.zeros(2, 3), {"ring": torch.zeros(2)}).values(("time", "ring", "label"))
    with pytest.raises(ValueError, match="at hand: none"):
        PointCloud(torch.zeros(2, 3)).values(("time",))


@pytest.mark.parametrize("xyz", [torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 3).double()])
@pytest.mark.usefixtures("unchecked")
def test_xyz_of_another_shape_or_type_is_refused(xyz: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"xyz must be float32 \(points 3\), got"):
        PointCloud(xyz)


@pytest.mark.parametrize("column", [torch.zeros(3), torch.tensor(1.0)])
def test_attributes_have_one_row_for_each_point(column: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="ring must have 2 rows"):
        PointCloud(torch.zeros(2, 3), {"ring": column})


def test_imports_are_light() -> None:
    modules = (
        "pointcloud.points, pointcloud.files, pointcloud.scatter, pointcloud.voxels, pointcloud.commands.environment"
    )
    heavy = "{'open3d', 'spconv', 'laspy', 'torch_scatter', 'matplotlib', 'scipy', 'rich'}"
    code = f"import sys, {modules}, pointcloud.cli; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"

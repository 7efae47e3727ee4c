"""A spinning LiDAR that casts its rays into a mesh (Open3D's RaycastingScene)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from pointcloud.import_open3d import import_open3d
from pointcloud.scenes.objects import Mesh


@dataclass(frozen=True)
class Lidar:
    """Beams evenly spread from `lowest` to `highest` degrees, `height` metres above the ground; lengths in metres."""

    beams: int = 32
    azimuths: int = 1024
    lowest: float = -25.0
    highest: float = 10.0
    height: float = 1.8
    reach: float = 70.0
    noise: float = 0.02
    dropout: float = 0.05  # share of lost returns at distance 0, three times as many at the end of the reach

    def __post_init__(self) -> None:
        if self.beams < 1 or self.azimuths < 1:
            raise ValueError(
                f"a LiDAR of {self.beams} beams and {self.azimuths} azimuths sees nothing; give at least 1"
            )

    def directions(self) -> Float[np.ndarray, "rays 3"]:
        """Return unit vectors, beam by beam from the lowest, counter-clockwise from +x."""
        elevation = np.radians(np.linspace(self.lowest, self.highest, self.beams))[:, None]
        azimuth = np.arange(self.azimuths)[None] * 2 * np.pi / self.azimuths
        parts = (
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation) + 0 * azimuth,
        )
        return np.stack(parts, -1).reshape(-1, 3)


@dataclass(frozen=True)
class Returns:
    """What came back: points, the triangles they lie on, and the cosine of the angle of incidence."""

    xyz: Float[np.ndarray, "points 3"]
    triangle: Int[np.ndarray, " points"]
    cosine: Float[np.ndarray, " points"]


def scan(mesh: Mesh, lidar: Lidar, generator: np.random.Generator) -> Returns:
    """Return one turn of the sensor at (0, 0, height): the nearest hit of each ray, noisy in range, some lost."""
    open3d = import_open3d()
    directions, sensor = lidar.directions(), np.array([0, 0, lidar.height])
    rays = np.concatenate([np.broadcast_to(sensor, directions.shape), directions], 1).astype(np.float32)
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        open3d.core.Tensor(mesh.vertices.astype(np.float32)), open3d.core.Tensor(mesh.triangles.astype(np.uint32))
    )
    hits = scene.cast_rays(open3d.core.Tensor(rays), nthreads=1)
    distance = hits["t_hit"].numpy().astype(np.float64)
    lost = lidar.dropout * (1 + 2 * np.minimum(distance / lidar.reach, 1))
    kept = (distance < lidar.reach) & (generator.random(len(distance)) >= lost)
    noisy = distance + generator.normal(0, lidar.noise, len(distance))
    cosine = np.abs((hits["primitive_normals"].numpy() * directions).sum(1))
    xyz = sensor + directions[kept] * noisy[kept, None]
    return Returns(xyz, hits["primitive_ids"].numpy()[kept].astype(np.int64), cosine[kept])

"""LAS and LAZ of airborne and terrestrial surveys, by laspy."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_las(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return xyz in float64, intensity in [0, 1], label (the classification) and, if there, color in [0, 1].

    ValueError if the file is cut short or of another kind, ImportError that says what to install.
    """
    try:
        import laspy
        import lazrs  # noqa: F401  laspy decompresses with it
    except ImportError as error:
        raise ImportError('.las and .laz need laspy and lazrs: pip install "visual-accel[points]"') from error
    try:
        las = laspy.read(path)
    except (laspy.errors.LaspyException, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix}, cut short or of another kind: {error}") from error
    if len(las.points) != las.header.point_count:
        raise ValueError(f"{path} is cut short: {len(las.points)} of {las.header.point_count} points are there")
    attributes = {"intensity": np.asarray(las.intensity) / 65535, "label": np.asarray(las.classification)}
    if "red" in las.point_format.dimension_names:
        colors = np.stack([np.asarray(las[name]) for name in ("red", "green", "blue")], 1)
        # The standard says 16 bits; many programs write 8.
        attributes["color"] = colors / (65535 if colors.max(initial=0) > 255 else 255)
    return np.asarray(las.xyz), attributes

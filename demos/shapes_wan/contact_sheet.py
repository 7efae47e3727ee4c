"""One picture of many generated videos: first, middle and last frame, dense above sparse."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

COLUMNS = 3
GAP = 4  # pixels between frames
INCHES = 4.2  # width of one prompt's frames


def strip(video: Float[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "h w3 3"]:
    """Return the first, the middle and the last frame of a video in [0, 1], side by side."""
    frames = [(video[place].clip(0, 1) * 255).round().astype(np.uint8) for place in (0, len(video) // 2, -1)]
    gap = np.full((frames[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([frames[0], gap, frames[1], gap, frames[2]], axis=1)


def write_contact_sheet(path: Path, cells: list[tuple[str, list[UInt8[np.ndarray, "h w 3"]]]]) -> None:
    """Draw (prompt, [dense strip, sparse strip or nothing]) cells, three in a row, and replace the file at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(cells) // COLUMNS)
    strips = len(cells[0][1])
    height, width = cells[0][1][0].shape[:2]
    figure = Figure(figsize=(INCHES * COLUMNS, rows * (strips * INCHES * height / width + 0.55)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, (prompt, pictures) in zip(grid.flat, cells, strict=False):
        gap = np.full((GAP, width, 3), 255, np.uint8)
        axes.imshow(np.concatenate([part for picture in pictures for part in (picture, gap)][:-1]))
        axes.set_title(textwrap.fill(prompt, 52), fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)

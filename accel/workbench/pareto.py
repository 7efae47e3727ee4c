"""Pictures of a benchmark: speed-up over likeness to the dense video, and which block ran at which step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from accel.files import replacing


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one reaches in both coordinates, by rising first coordinate."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def draw_pareto(means: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a PNG of mean PSNR (dB) and speed-up of every case, the frontier as a line."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="PSNR to the dense video (dB)", ylabel="speed-up of the denoising loop")
    ways = sorted({way_of(row) for row in means})
    for color, way in enumerate(ways):
        for row in (row for row in means if way_of(row) == way):
            marker = "o" if row["dense_share"] else "^"
            axes.plot(row["psnr_db"], row["speedup"], marker, color=f"C{color}", markersize=7)
            label = f"{row['density']:.2f}" if row["density"] is not None else "dense"
            axes.annotate(label, (row["psnr_db"], row["speedup"]), (5, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], "s", color=f"C{color}", label=way)
    axes.plot([], [], "ko", label="with dense warm-up")
    axes.plot([], [], "k^", label="without")
    line = frontier([(row["psnr_db"], row["speedup"]) for row in means])
    axes.plot(*zip(*line, strict=True), color="0.7", zorder=0)
    figure.legend(loc="outside right upper", fontsize=8)  # within the axes it would cover points
    axes.set_title("figures at the points: measured density of the sparse calls", fontsize=9)
    with replacing(file) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def way_of(row: dict[str, Any]) -> str:
    """Return what a row is a row of: method, cache or both."""
    names = [row["method"], row["cache"]]
    return " with ".join(name for name in names if name not in ("dense", "none"))


def draw_blocks(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a PNG of the share of generations that computed each block at each step, a panel a method and cache."""
    panels: dict[str, list[list[str]]] = {}
    for row in (row for row in rows if row.get("blocks")):
        panels.setdefault(way_of(row), []).append(row["blocks"])
    figure = Figure(figsize=(8, 1 + 2 * max(len(panels), 1)), layout="constrained")
    grid = figure.subplots(max(len(panels), 1), squeeze=False)[:, 0]
    for axes, (way, tables) in zip(grid, panels.items(), strict=False):
        computed = np.mean([[[letter == "c" for letter in step] for step in table] for table in tables], axis=0)
        axes.imshow(computed.T, vmin=0, vmax=1, aspect="auto", interpolation="nearest", cmap="Greys")
        axes.set(title=f"{way}: {computed.mean():.2f} of all blocks computed (black)", xlabel="step", ylabel="block")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    with replacing(file) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)

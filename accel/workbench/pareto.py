"""A picture of what each method gives for its quality: speed-up over likeness to the dense video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    methods = sorted({row["method"] for row in means})
    for color, method in enumerate(methods):
        for row in (row for row in means if row["method"] == method):
            marker = "o" if row["dense_share"] else "^"
            axes.plot(row["psnr_db"], row["speedup"], marker, color=f"C{color}", markersize=7)
            label = f"{row['density']:.2f}" if row["density"] is not None else "dense"
            axes.annotate(label, (row["psnr_db"], row["speedup"]), (5, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], "s", color=f"C{color}", label=method)
    axes.plot([], [], "ko", label="with dense warm-up")
    axes.plot([], [], "k^", label="without")
    line = frontier([(row["psnr_db"], row["speedup"]) for row in means])
    axes.plot(*zip(*line, strict=True), color="0.7", zorder=0)
    axes.legend(fontsize=8)
    axes.set_title("figures at the points: measured density of the sparse calls", fontsize=9)
    with replacing(file) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)

"""The pictures of a comparison: labelled frames, and one page of frames, densities and times."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from accel.workbench.comparison import Comparison

LABEL_HEIGHT = 32
# Narrower videos are enlarged in side_by_side.mp4, so that the labels fit above them.
PANEL_WIDTH = 256
PICTURE_FRAMES = 6
DIFFERENCE_GAIN = 4
TITLE_WIDTH, TITLE_LINES = 68, 3  # even of letters as wide as W so many fit the page


def to_bytes(frames: Float[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Return frames of [0, 1] as 8-bit colours."""
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def labelled(frames: Float[np.ndarray, "t h w 3"], label: str) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Return the frames, enlarged to a readable width, under a line of text."""
    scale = math.ceil(PANEL_WIDTH / frames.shape[2])
    video = to_bytes(frames).repeat(scale, axis=1).repeat(scale, axis=2)
    line = Image.new("RGB", (video.shape[2], LABEL_HEIGHT))
    ImageDraw.Draw(line).text((8, LABEL_HEIGHT // 2), label, "white", ImageFont.load_default(18), anchor="lm")
    lines = np.broadcast_to(np.asarray(line), (len(video), *np.asarray(line).shape))
    return np.concatenate([lines, video], axis=1)


def page(comparison: Comparison) -> FigureCanvasAgg:
    """Draw frames, their differences, and each layer's density and time."""
    report = comparison.report
    figure = Figure(figsize=(12, 10), layout="constrained")
    figure.suptitle(
        f"{_title(report['prompt'])}\n{report['model']}, {_way(report)}: {report['speedup']:.2f}x at "
        f"{report['psnr_db']:.1f} dB, SSIM {report['ssim']:.3f}, "
        f"{report['dense_steps']} of {report['steps']} steps dense, {report['tokens']} tokens",
        parse_math=False,
    )
    parts: Any = figure.subfigures(2, height_ratios=(2, 1))
    upper, lower = parts
    _draw_frames(upper, comparison)
    left, right = lower.subplots(1, 2)
    _draw_density(lower, left, comparison)
    _draw_times(right, comparison)
    return FigureCanvasAgg(figure)


def _title(prompt: str) -> str:
    """Return the prompt in lines that fit the page, and dots for what would leave no room for the pictures."""
    return textwrap.fill(" ".join(prompt.split()), TITLE_WIDTH, max_lines=TITLE_LINES, placeholder=" ...")


def _way(report: dict[str, Any]) -> str:
    cache = report.get("cache", "none")
    return report["method"] if cache == "none" else f"{report['method']} with cache {cache}"


def _draw_frames(figure: SubFigure, comparison: Comparison) -> None:
    rows = {
        "dense": comparison.dense,
        "sparse": comparison.sparse,
        f"difference x{DIFFERENCE_GAIN}": np.abs(comparison.dense - comparison.sparse) * DIFFERENCE_GAIN,
    }
    chosen = np.linspace(0, len(comparison.dense) - 1, PICTURE_FRAMES).round().astype(int)
    grid = figure.subplots(len(rows), PICTURE_FRAMES, subplot_kw={"xticks": [], "yticks": []})
    for row, (name, video) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name)
        for axes, index in zip(row, chosen, strict=True):
            axes.imshow(video[index].clip(0, 1))
    for axes, index in zip(grid[0], chosen, strict=True):
        axes.set_title(f"frame {index + 1}", fontsize=9)


def _draw_density(figure: SubFigure, axes: Axes, comparison: Comparison) -> None:
    axes.set(xlabel="step", ylabel="layer", title="density" + (" (white: at rest)" if comparison.blocks else ""))
    # Without a method all attention is dense where blocks are computed.
    ran = [(block, b.step, 1.0) for b in comparison.blocks if b.kind == "computed" for block in b.blocks]
    points = [(record.layer, record.step, record.density) for record in comparison.records] or ran
    totals, calls = np.zeros((2, 1 + max((layer for layer, _, _ in points), default=0), comparison.report["steps"]))
    for layer, step, density in points:
        totals[layer, step] += density
        calls[layer, step] += 1
    means = np.divide(totals, calls, where=calls > 0, out=np.full_like(totals, np.nan))
    image = axes.imshow(means, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _draw_times(axes: Axes, comparison: Comparison) -> None:
    axes.set(xlabel="layer", ylabel="seconds")
    axes.set_title("attention time", loc="left")
    layers = np.array(sorted({record.layer for record in comparison.records}))
    each = comparison.report["attention_dense_seconds"] / max(len(comparison.records), 1)
    dense = [each * sum(record.layer == layer for record in comparison.records) for layer in layers]
    sparse = [sum(record.seconds for record in comparison.records if record.layer == layer) for layer in layers]
    axes.bar(layers - 0.2, dense, 0.4, label="dense")
    axes.bar(layers + 0.2, sparse, 0.4, label="sparse")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Beside the title: within the axes it would cover bars.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)

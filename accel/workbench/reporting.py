"""The files that show what a generation or a comparison gave: videos, numbers, one picture."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import tempfile
import textwrap
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import imageio.v2 as imageio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from accel.methods import METHODS
from accel.workbench.loading import InputError, LoadedPipeline, transformers, video_tokens
from sparse_kernels import backend_reasons

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from accel.workbench.comparison import Comparison
    from accel.workbench.generation import Generation

FRAMES_PER_SECOND = 16
LABEL_HEIGHT = 32
# Narrower videos are enlarged in side_by_side.mp4, so that the labels fit above them.
PANEL_WIDTH = 256
PICTURE_FRAMES = 6
DIFFERENCE_GAIN = 4


def prepare_output(folder: Path) -> None:
    """Raise InputError if files could not be written to `folder`, which need not exist; leaves nothing behind."""
    present = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=present):
            return
    except OSError as error:
        raise InputError(
            f"output folder {str(folder)!r} cannot be written: {error.strerror or error}; give another folder"
        ) from error


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write dense.mp4, sparse.mp4, side_by_side.mp4, report.json and report.png; return their paths.

    Nothing half-written stays: InputError if the folder cannot take them.
    """
    report = comparison.report
    labels = (
        f"dense  {report['dense_seconds']:.1f} s",
        f"sparse  {report['sparse_seconds']:.1f} s  {report['speedup']:.1f}x",
    )
    panels = [_labelled(*pair) for pair in zip((comparison.dense, comparison.sparse), labels, strict=True)]
    writers: dict[str, Callable[[Path], object]] = {
        "dense.mp4": lambda path: _write_video(path, _bytes(comparison.dense)),
        "sparse.mp4": lambda path: _write_video(path, _bytes(comparison.sparse)),
        "side_by_side.mp4": lambda path: _write_video(path, np.concatenate(panels, axis=2)),
        "report.json": lambda path: _write_json(path, report),
        "report.png": lambda path: _picture(comparison).print_png(path),
    }
    return _write_all(writers, folder)


def write_generation(generation: Generation, folder: Path) -> list[Path]:
    """Write video.mp4 and report.json; return their paths."""
    writers: dict[str, Callable[[Path], object]] = {
        "video.mp4": lambda path: _write_video(path, _bytes(generation.frames)),
        "report.json": lambda path: _write_json(path, generation.report),
    }
    return _write_all(writers, folder)


def facts(loaded: LoadedPipeline, method: Any | None, call: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return what was asked for, and of which machine and versions; a method of None is dense."""
    transformer = transformers(loaded.pipeline)[0]
    size = {"frames": call["num_frames"], "height": call["height"], "width": call["width"]}
    return {
        "model": loaded.name,
        "method": _method_name(method),
        "method_options": {} if method is None else dataclasses.asdict(method),
        "prompt": call["prompt"],
        "seed": seed,
        "tokens": video_tokens(loaded.pipeline, **size),
        **size,
        "steps": call["num_inference_steps"],
        "guidance_scale": call["guidance_scale"],
        "dtype": str(transformer.dtype).removeprefix("torch."),
        "device": device_name(transformer.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sparse_backend": None if method is None else sparse_backend(transformer.device),
    }


def device_name(device: torch.device) -> str:
    """Return the name of the processor or graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def sparse_backend(device: torch.device) -> str:
    """Return the backend that block_sparse_attention chooses on a device."""
    best = "triton" if device.type == "cuda" else "cpu"
    return best if backend_reasons(device.type)[best] is None else "reference"


def _method_name(method: Any | None) -> str:
    if method is None:
        return "dense"
    return next((name for name, known in METHODS.items() if type(method) is known), type(method).__name__)


def _write_all(writers: dict[str, Callable[[Path], object]], folder: Path) -> list[Path]:
    """Write every file under a temporary name first and move them only when all are whole."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder: its parent may be another file system, over which no file can be renamed.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as temporary:
            for name, write in writers.items():
                write(Path(temporary) / name)
            for name in writers:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise InputError(f"output folder {str(folder)!r} cannot be written: {error.strerror or error}") from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds files when all went well
                folder.rmdir()
    return [folder / name for name in writers]


def _write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    # Without macro_block_size=1 the frames would be resized to multiples of 16.
    writer: Any = imageio.get_writer(path, fps=FRAMES_PER_SECOND, codec="libx264", quality=9, macro_block_size=1)
    with writer:
        for frame in frames:
            writer.append_data(frame)


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with "inf" and "nan" as words: JSON knows no infinity, which is the PSNR of identical videos."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _write_json(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(finite(report), indent=2, allow_nan=False, default=str) + "\n")


def _bytes(frames: Float[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w 3"]:
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def _labelled(frames: Float[np.ndarray, "t h w 3"], label: str) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Return the frames, enlarged to a readable width, under a line of text."""
    scale = math.ceil(PANEL_WIDTH / frames.shape[2])
    video = _bytes(frames).repeat(scale, axis=1).repeat(scale, axis=2)
    line = Image.new("RGB", (video.shape[2], LABEL_HEIGHT))
    ImageDraw.Draw(line).text((8, LABEL_HEIGHT // 2), label, "white", ImageFont.load_default(18), anchor="lm")
    lines = np.broadcast_to(np.asarray(line), (len(video), *np.asarray(line).shape))
    return np.concatenate([lines, video], axis=1)


def _picture(comparison: Comparison) -> FigureCanvasAgg:
    """Draw frames, their differences, and each layer's density and time."""
    report = comparison.report
    figure = Figure(figsize=(12, 10), layout="constrained")
    figure.suptitle(
        f"{textwrap.fill(report['prompt'], 110)}\n{report['model']}, {report['method']}: {report['speedup']:.2f}x at "
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
    axes.set(xlabel="step", ylabel="layer", title="density")
    layers = 1 + max((record.layer for record in comparison.records), default=0)
    totals, calls = np.zeros((2, layers, comparison.report["steps"]))
    for record in comparison.records:
        totals[record.layer, record.step] += record.density
        calls[record.layer, record.step] += 1
    means = np.divide(totals, calls, where=calls > 0, out=np.full_like(totals, np.nan))
    image = axes.imshow(means, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))


def _draw_times(axes: Axes, comparison: Comparison) -> None:
    axes.set(xlabel="layer", ylabel="seconds", title="attention time")
    layers = np.array(sorted({record.layer for record in comparison.records}))
    each = comparison.report["attention_dense_seconds"] / max(len(comparison.records), 1)
    dense = [each * sum(record.layer == layer for record in comparison.records) for layer in layers]
    sparse = [sum(record.seconds for record in comparison.records if record.layer == layer) for layer in layers]
    axes.bar(layers - 0.2, dense, 0.4, label="dense")
    axes.bar(layers + 0.2, sparse, 0.4, label="sparse")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()

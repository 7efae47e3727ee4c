"""The files that show what a generation or a comparison gave: videos, numbers, one picture."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from jaxtyping import UInt8

from accel.files import unwritable
from accel.workbench.comparison import Comparison
from accel.workbench.facts import finite
from accel.workbench.generation import Generation
from accel.workbench.pictures import labelled, page, to_bytes


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write dense.mp4, sparse.mp4, side_by_side.mp4, report.json and report.png; return their paths.

    Nothing half-written stays: InputError if the folder cannot take them.
    """
    report, rate = comparison.report, comparison.frames_per_second
    labels = (
        f"dense  {report['dense_seconds']:.1f} s",
        f"sparse  {report['sparse_seconds']:.1f} s  {report['speedup']:.1f}x",
    )
    panels = [labelled(*pair) for pair in zip((comparison.dense, comparison.sparse), labels, strict=True)]
    writers: dict[str, Callable[[Path], object]] = {
        "dense.mp4": lambda path: write_video(path, to_bytes(comparison.dense), rate),
        "sparse.mp4": lambda path: write_video(path, to_bytes(comparison.sparse), rate),
        "side_by_side.mp4": lambda path: write_video(path, np.concatenate(panels, axis=2), rate),
        "report.json": lambda path: _write_json(path, report),
        "report.png": lambda path: page(comparison).print_png(path),
    }
    return _write_all(writers, folder)


def write_generation(generation: Generation, folder: Path) -> list[Path]:
    """Write video.mp4 and report.json; return their paths."""
    writers: dict[str, Callable[[Path], object]] = {
        "video.mp4": lambda path: write_video(path, to_bytes(generation.frames), generation.frames_per_second),
        "report.json": lambda path: _write_json(path, generation.report),
    }
    return _write_all(writers, folder)


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
        raise unwritable(folder, error) from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds files when all went well
                folder.rmdir()
    return [folder / name for name in writers]


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], frames_per_second: int) -> None:
    """Write frames as H.264."""
    # Without macro_block_size=1 the frames would be resized to multiples of 16.
    writer: Any = imageio.get_writer(path, fps=frames_per_second, codec="libx264", quality=9, macro_block_size=1)
    with writer:
        for frame in frames:
            writer.append_data(frame)


def _write_json(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(finite(report), indent=2, allow_nan=False, default=str) + "\n")

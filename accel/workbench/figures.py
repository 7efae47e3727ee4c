"""The figures of a comparison as people read them: label and format of each, in one order for all tables."""

from __future__ import annotations

from typing import Any

# Key in the report -> label, format.
FIGURES = {
    "dense_seconds": ("dense", "{:.2f} s"),
    "sparse_seconds": ("sparse", "{:.2f} s"),
    "speedup": ("speed-up", "{:.2f}x"),
    "attention_speedup": ("attention speed-up", "{:.2f}x"),
    "planning_share": ("planning, share of attention", "{:.2f}"),
    "density": ("density of sparse calls", "{:.3f}"),
    "recall": ("recall of sparse calls", "{:.3f}"),
    "blocks_computed": ("blocks computed", "{:.3f}"),
    "blocks_reused": ("blocks reused", "{:.3f}"),
    "blocks_skipped": ("blocks skipped", "{:.3f}"),
    "blocks_narrow": ("blocks with a narrow MLP", "{:.3f}"),
    "psnr_db": ("PSNR to dense", "{:.2f} dB"),
    "ssim": ("SSIM to dense", "{:.4f}"),
    "dense_steps": ("dense steps", "{}"),
    "steps": ("steps", "{}"),
    "tokens": ("tokens", "{}"),
}


def figure_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of every figure that the report has; one that was not measured is a dash."""
    return [
        (label, "-" if report[key] is None else pattern.format(report[key]))
        for key, (label, pattern) in FIGURES.items()
        if key in report
    ]

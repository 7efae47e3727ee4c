"""The embedded model on the device: made densely and sparsely, with time and likeness; a part of `benchmarks.gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.methods.registry import by_name
from accel.workbench.comparison import compare
from accel.workbench.loading import load_pipeline
from benchmarks.cases import Cases
from benchmarks.rows import Row, origin

PROMPT = "a large red circle moves left on a white background"
METHODS = ("svg-ear", "full", "svg2", "xattention", "adaspa", "sparse-vdit", "re-ttention")
LEAST_PSNR = 25.0  # dB: what a method gets wrong by being sparse stays above, what a kernel gets wrong does not


def compare_ways(loaded: Any, method: str, options: Row, size: dict[str, Any]) -> Row:
    """Return the report of `accel generate --compare`."""
    report = compare(loaded, by_name(method, **options), PROMPT, **size).report
    row = {name: value for name, value in report.items() if isinstance(value, (int, float, str)) or value is None}
    note = f"{report['psnr_db']:.1f} dB, SSIM {report['ssim']:.3f}, {report['sparse_backend']}"
    times = {"ms_dense": report["dense_seconds"] * 1e3, "ms_ours": report["sparse_seconds"] * 1e3}
    return row | times | {"note": note, "ok": size != {} or report["psnr_db"] > LEAST_PSNR}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    seconds: Annotated[float, typer.Option(help="no case starts after that")] = 300.0,
    smoke: Annotated[bool, typer.Option(help="a short small video on the CPU")] = False,
) -> None:
    """Generate, compare and write rows."""
    device = "cpu" if smoke else "cuda"
    loaded = load_pipeline(None, device)
    loaded.pipeline.set_progress_bar_config(disable=True)
    size: dict[str, Any] = dict(steps=3, frames=13, height=64, width=64) if smoke else {}
    cases = Cases(json_file, device, seconds)
    for method in METHODS[:1] if smoke else METHODS:
        options: Row = {} if method in ("svg-ear", "full") else {"density": 0.3}
        about = origin(device)
        cases.run(f"shapes-wan, {method}", lambda m=method, o=options, a=about: a | compare_ways(loaded, m, o, size))


if __name__ == "__main__":
    typer.run(main)

"""Times of the kernels at the sizes that video models have, beside the best that the device has otherwise.

A part of `benchmarks.gpu`; it measures as `benchmarks.attention`, `.kmeans`, `.scores`, `.sparse_conv`, `.points` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import attention, kmeans, points, scores, sparse_conv
from benchmarks.cases import Cases
from benchmarks.rows import Row

Named = tuple[str, Callable[[], Row | Sequence[Row]]]

# (what has this size, heads, tokens, head_dim, block, each head's own blocks, density, precision); the first are those
# that decide whether it is worth while. HunyuanVideo's densities are those that sliding tiles were published with.
ATTENTION = [
    ("Wan 1.3B", 12, 32_760, 128, 128, False, 0.25, None),
    ("Wan 14B", 40, 75_600, 128, 128, False, 0.25, None),
    ("Wan 1.3B", 12, 32_760, 128, 128, True, 0.25, None),
    ("Wan 1.3B", 12, 32_760, 128, 64, False, 0.25, None),
    ("HunyuanVideo", 24, 115_200, 128, 128, False, 0.09, None),
    ("Wan 1.3B", 12, 32_760, 128, 128, False, 1.0, None),
    ("Wan 1.3B", 12, 32_760, 128, 128, False, 0.25, "int8"),
    ("Wan 1.3B", 12, 32_760, 128, 128, False, 0.25, "fp8"),
    ("Wan 14B", 40, 75_600, 128, 128, False, 0.1, None),
    ("Wan 14B", 40, 75_600, 128, 128, True, 0.1, None),
    ("head_dim 64", 24, 16_384, 64, 128, False, 0.25, None),
    ("HunyuanVideo", 24, 115_200, 128, 128, False, 0.417, None),
    ("Wan 1.3B", 12, 32_760, 128, 128, False, 0.25, "flex"),
]
TINY_ATTENTION = [("tiny", 2, 200, 32, 32, False, 0.5, None), ("tiny", 2, 200, 32, 32, True, 0.5, None)]
# (heads, rows, head_dim, clusters): what flash-kmeans publishes, and SVG2's keys of Wan 1.3B
KMEANS = [(12, 32_760, 128, 512), (32, 65_536, 128, 1024), (8, 131_072, 128, 128), (32, 131_072, 128, 1024)]
SCORES = [(12, 32_760, 128, 64), (12, 32_760, 128, 128), (40, 75_600, 128, 128)]  # (heads, tokens, head_dim, block)
CONVOLUTIONS = [(50_000, 256), (100_000, 64), (20_000, 16)]  # (voxels, channels)
SEARCHES = [("sampling", 8192, 1024), ("neighbours", 8192, 16), ("neighbours", 131_072, 16)]  # (op, points, found)


def attention_cases(device: str, smoke: bool) -> Iterator[Named]:
    """Yield the cases of block-sparse attention, in bfloat16 on CUDA."""
    dtype = torch.float32 if smoke else torch.bfloat16
    for model, heads, seq, head_dim, block, variable, density, kind in TINY_ATTENTION if smoke else ATTENTION:
        blocks = f"{'each head its own, about' if variable else 'blocks of'} {block}"
        name = f"{model}, {heads} x {seq:,} x {head_dim}, {blocks}, {density:g}" + (f", {kind}" if kind else "")
        precision, flex = (None, True) if kind == "flex" else (kind, False)
        size = (dtype, head_dim, seq, heads, block, variable, density, device)
        reason = attention.reason_against(precision, device)
        if reason is None:
            yield name, partial(attention.measure, *size, precision=precision, flex=flex)
        else:
            yield name, partial(dict, skipped=reason)


def kmeans_cases(device: str, smoke: bool) -> Iterator[Named]:
    """Yield the cases of k-means."""
    for size in [(2, 300, 16, 8)] if smoke else KMEANS:
        heads, rows, head_dim, clusters = size
        name = f"k-means, {heads} x {rows:,} x {head_dim}, {clusters:,} clusters"
        yield name, partial(_kmeans_rows, size, device, repeats=1 if smoke else 3)


def _kmeans_rows(size: tuple[int, int, int, int], device: str, repeats: int) -> list[Row]:
    """Return our rows, each with the time of plain torch beside it where that was measured."""
    rows = kmeans.measure(*size, device, repeats)
    other = next((row["ms_per_iteration"] for row in rows if row["library"] == "torch"), None)
    ours = [row for row in rows if row["library"].startswith("ours")]
    return [
        row | {"note": row["dtype"], "ms_torch": other, "speedup": other and other / row["ms_per_iteration"]}
        for row in ours
    ]


def scores_cases(device: str, smoke: bool) -> Iterator[Named]:
    """Yield the cases of block scores; a row names its score."""
    dtype = torch.float32 if smoke else torch.bfloat16
    for heads, seq, head_dim, block in [(2, 200, 32, 16)] if smoke else SCORES:
        name = f"scores, {heads} x {seq:,} x {head_dim}, blocks of {block}"
        measure = partial(scores.measure, heads, seq, head_dim, block, dtype, device)
        yield name, lambda measure=measure: [row | {"note": row["score"]} for row in measure()]


def sparse_conv_cases(device: str, smoke: bool) -> Iterator[Named]:
    """Yield the cases of sparse convolution; a row names its operation and whether pairs were cached."""
    for voxels, channels in [(500, 8)] if smoke else CONVOLUTIONS:
        measure = partial(sparse_conv.measure, voxels, channels, 1 if smoke else 3, device)

        def named(measure: Callable[[], list[Row]] = measure) -> list[Row]:
            pairs = {True: "pairs cached", False: "with pairs"}
            return [row | {"note": f"{row['op']}, {row['dtype']}, {pairs[row['pairs_cached']]}"} for row in measure()]

        yield f"sparse convolution, {voxels:,} voxels, {channels} channels", named


def points_cases(device: str, smoke: bool) -> Iterator[Named]:
    """Yield the cases of searches in a clustered cloud of points."""
    for op, size, found in [("sampling", 200, 50), ("neighbours", 200, 16)] if smoke else SEARCHES:
        run = partial(points.measure, op, "clusters", size, found, device, 1 if smoke else 3)
        yield f"{op}, {size:,} points, {found:,} found", run


KINDS = {
    "attention": attention_cases,
    "kmeans": kmeans_cases,
    "scores": scores_cases,
    "sparse_conv": sparse_conv_cases,
    "points": points_cases,
}


def main(
    kinds: Annotated[list[str], typer.Argument(help=f"of {', '.join(KINDS)}")],
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    seconds: Annotated[float, typer.Option(help="no case starts after that")] = 300.0,
    smoke: Annotated[bool, typer.Option(help="tiny shapes on the CPU")] = False,
) -> None:
    """Measure and write rows."""
    device = "cpu" if smoke else "cuda"
    cases = Cases(json_file, device, seconds)
    for kind in kinds:
        for name, measure in KINDS[kind](device, smoke):
            cases.run(name, measure)


if __name__ == "__main__":
    typer.run(main)

"""Block scores against torch's matrix product of q and k alone, which every exact score has to make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.rows import origin, show
from benchmarks.timing import median_seconds
from sparse_kernels import antidiagonal_scores, block_mass, pooled
from sparse_kernels.block_map import uniform_offsets

COLUMNS = ("score", "head_dim", "seq", "block", "ms_product", "ms_ours", "fraction_of_product", "gflops")
ROWS = 512  # query rows multiplied at once


def product(q: Tensor, k: Tensor) -> None:
    """Multiply all of q and k, a chunk at a time: nothing of the size s x s is written."""
    out = q.new_empty(ROWS, k.shape[2])
    for queries, keys in zip(q.flatten(0, 1), k.flatten(0, 1), strict=True):
        for rows in queries.split(ROWS):
            torch.mm(rows, keys.T, out=out[: len(rows)])


def scores(q: Tensor, k: Tensor, block: int) -> list[tuple[str, int, Callable[[], Tensor]]]:
    """Return (name, share of the product's operations as 1 / n, run)."""
    offsets = uniform_offsets(q.shape[2], block, q.device)
    lse = torch.full(q.shape[:3], 10.0, device=q.device)  # its value does not change the time
    return [
        ("block mass", 1, lambda: block_mass(q, k, lse, offsets, offsets)),
        ("antidiagonal, stride 8", 8, lambda: antidiagonal_scores(q, k, block, 8)),
        ("antidiagonal, stride 16", 16, lambda: antidiagonal_scores(q, k, block, 16)),
        ("pooled", 0, lambda: pooled(q, offsets) @ pooled(k, offsets).mT),
    ]


def measure(heads: int, seq: int, head_dim: int, block: int, dtype: torch.dtype, device: str) -> list[dict[str, Any]]:
    """Return a row for each score; packing and reshaping are inside the measured time.

    `fraction_of_product`: rate of the score over the rate of the bare matrix product; None where the score has none.
    """
    q, k = (torch.randn(1, seq, heads, head_dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(2))
    bare = median_seconds(lambda: product(q, k), device, 3)
    rows = []
    for name, divisor, run in scores(q, k, block):
        seconds = median_seconds(run, device, 3)
        operations = 2 * heads * seq * seq * head_dim / divisor if divisor else None
        rows.append(
            origin(device) | {
                "dtype": str(dtype).removeprefix("torch."), "score": name, "heads": heads, "head_dim": head_dim,
                "seq": seq, "block": block, "ms_product": bare * 1e3, "ms_ours": seconds * 1e3,
                "fraction_of_product": bare / divisor / seconds if divisor else None,
                "gflops": operations / seconds / 1e9 if operations else None,
            }
        )  # fmt: skip
    return rows


def main(
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    heads: int = 4,
    quick: Annotated[bool, typer.Option(help="under a minute on two cores")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times and rates and write the rows as JSON."""
    cases = [(seq, d, block) for seq in ((4096,) if quick else (4096, 8192)) for d in (64, 128) for block in (64, 128)]
    rows = [row for case in cases for row in measure(heads, *case, getattr(torch, dtype), device)]
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

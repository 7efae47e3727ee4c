"""Block-sparse attention against the fastest dense SDPA of the same device, side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.rows import origin, show
from sparse_kernels import BlockMap, block_sparse_attention
from sparse_kernels.block_sparse_attention import precision_reasons

COLUMNS = ("head_dim", "seq", "blocks", "density", "ms_dense", "ms_ours", "speedup", "fraction_of_ideal")


def best_of(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of `repeats` runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def make_map(seq: int, heads: int, block: int, density: float, variable: bool, device: str) -> BlockMap:
    """Return a random map, as many blocks in each row; sizes are equal, or as uneven as k-means makes them."""
    generator = torch.Generator().manual_seed(0)
    count = -(-seq // block)
    keep = max(1, round(density * count))
    mask = torch.rand(1, heads, count, count, generator=generator).argsort(-1) < keep
    if not variable:
        return BlockMap.uniform(mask.to(device), block, block, seq, seq)
    cuts = torch.stack(
        [torch.randperm(seq - 1, generator=generator)[: count - 1].sort().values + 1 for _ in range(heads)]
    )
    edges = torch.zeros(heads, 1, dtype=torch.long), torch.full((heads, 1), seq)
    offsets = torch.cat([edges[0], cuts, edges[1]], 1)[None].to(device, torch.int32)
    return BlockMap.from_dense(mask.to(device), offsets, offsets)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Return |out - exact| / |exact|."""
    return ((out.double() - exact).norm() / exact.norm()).item()


def measure(
    dtype: torch.dtype, head_dim: int, seq: int, heads: int, block: int, variable: bool, density: float, device: str,
    precision: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return one row; making the packed lists from the mask, packing, rounding and sorting are inside the time."""
    q, k, v = (torch.randn(1, seq, heads, head_dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    block_map = make_map(seq, heads, block, density, variable, device)
    mask = block_map.to_dense()

    def ours() -> Tensor:
        packed = BlockMap.from_dense(mask, block_map.q_offsets, block_map.kv_offsets)
        return block_sparse_attention(q, k, v, packed, precision=precision)

    dense = best_of(lambda: scaled_dot_product_attention(q, k, v), device, 3)
    sparse = best_of(ours, device, 3)
    everything = BlockMap.from_dense(torch.ones_like(mask), block_map.q_offsets, block_map.kv_offsets)
    exact = scaled_dot_product_attention(q[:, :, :256].double(), k.double(), v.double())
    error = relative_error(block_sparse_attention(q, k, v, everything, precision=precision)[:, :, :256], exact)
    density = block_map.density
    return {
        **origin(device), "dtype": str(dtype).removeprefix("torch."), "precision": precision,
        "head_dim": head_dim, "heads": heads, "seq": seq, "blocks": f"{'variable ' if variable else ''}{block}",
        "block_q": block, "block_kv": block, "density": density, "ms_dense": dense * 1e3, "ms_ours": sparse * 1e3,
        "speedup": dense / sparse, "fraction_of_ideal": dense / sparse * density,
        "tflops_kept": 4 * heads * seq * seq * head_dim * density / sparse / 1e12, "rel_l2_full": error,
    }  # fmt: skip


def cases(quick: bool) -> list[tuple[int, int, int, bool, float]]:
    """Return (head_dim, seq, block, variable, density)."""
    densities = (0.125, 0.25, 0.5, 1.0)
    kinds = [(64, 128, False), (128, 128, False), (64, 64, False), (64, 96, True)]
    lengths = (4096,) if quick else (8192, 16384)
    return [(d, seq, block, variable, share) for seq in lengths for d, block, variable in kinds for share in densities]


def main(
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    heads: int = 4,
    precision: Annotated[str | None, typer.Option(help="int8 or fp8: rows of it beside the plain ones")] = None,
    quick: Annotated[bool, typer.Option(help="under a minute on two cores")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of speed-ups and write the rows as JSON."""
    if precision is not None:
        backend = "triton" if device == "cuda" else "cpu"
        reason = precision_reasons(precision, device)[backend]
        if reason is not None:
            raise typer.BadParameter(f"{backend} cannot run {precision}: {reason}", param_hint="--precision")
    rows = [
        measure(getattr(torch, dtype), head_dim, seq, heads, block, variable, density, device, kind)
        for head_dim, seq, block, variable, density in cases(quick)
        for kind in ((None,) if precision is None else (None, precision))
    ]
    show(rows, COLUMNS if precision is None else ("precision", *COLUMNS), json_file)


if __name__ == "__main__":
    typer.run(main)

"""Block-sparse attention against the fastest dense one of the same device, side by side in one process.

On a CPU that is the faster of torch SDPA and OpenVINO, on CUDA the fastest SDPA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.cases import Cases
from benchmarks.dense import dense_seconds, product_rate
from benchmarks.rows import origin, show
from benchmarks.timing import median_seconds
from sparse_kernels import BlockMap, block_sparse_attention
from sparse_kernels._extension import instruction_set
from sparse_kernels.block_map import block_of_position
from sparse_kernels.block_sparse_attention import precision_reasons

# A few times what was measured; the relative error of an output.
LIMITS = {
    torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, "int8": 5e-2, "fp8": 0.15,
}  # fmt: skip
SAMPLED_ROWS = 64
REPEATS = 9  # short calls: the first few of a size still take fresh memory from the system
COLUMNS = (
    "backend", "head_dim", "seq", "blocks", "density", "dense_backend", "ms_dense", "ms_ours", "speedup",
    "fraction_of_ideal", "fraction_of_gemm",
)  # fmt: skip


def make_map(seq: int, heads: int, block: int, density: float, variable: bool, device: str) -> BlockMap:
    """Return a random map, as many blocks in each row; sizes are equal, or as uneven as k-means makes them."""
    generator = torch.Generator(device).manual_seed(0)
    count = -(-seq // block)
    keep = max(1, round(density * count))
    mask = torch.rand(1, heads, count, count, generator=generator, device=device).argsort(-1) < keep
    if not variable:
        return BlockMap.uniform(mask, block, block, seq, seq)
    cuts = torch.stack(
        [
            torch.randperm(seq - 1, generator=generator, device=device)[: count - 1].sort().values + 1
            for _ in range(heads)
        ]
    )
    offsets = pad(pad(cuts, (1, 0)), (0, 1), value=seq)[None].int()
    return BlockMap.from_dense(mask, offsets, offsets)


@functools.cache
def _compile_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def compiled_flex(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """Return FlexAttention's output as torch compiles it for this device."""
    return _compile_flex()(q, k, v, block_mask=block_mask)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Return |out - exact| / |exact|."""
    return ((out.double() - exact).norm() / exact.norm()).item()


def sparse_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> float:
    """Return the relative error over the visited blocks, of evenly spaced rows of every head in float64."""
    rows = torch.linspace(0, q.shape[2] - 1, SAMPLED_ROWS, device=q.device).long()
    queries = block_of_position(block_map.q_offsets, q.shape[2])
    every = block_map.to_dense(), queries, block_of_position(block_map.kv_offsets, k.shape[2])
    exact = []
    for head in range(q.shape[1]):
        mask, query_blocks, key_blocks = (x[0, head % x.shape[1]] for x in every)
        scores = q[0, head, rows].double() @ k[0, head].double().mT * q.shape[-1] ** -0.5
        visited = mask[query_blocks[rows]][:, key_blocks]
        exact.append(scores.masked_fill(~visited, -torch.inf).softmax(-1) @ v[0, head].double())
    return relative_error(out[0, :, rows], torch.stack(exact))


def reason_against(precision: str | None, device: str) -> str | None:
    """Return why the quick backend of a device cannot round to a precision, or None."""
    return None if precision is None else precision_reasons(precision, device)["triton" if device == "cuda" else "cpu"]


def measure(
    dtype: torch.dtype, head_dim: int, seq: int, heads: int, block: int, variable: bool, density: float, device: str,
    precision: str | None = None, flex: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return one row; making the packed lists from the mask, packing, rounding and sorting are inside the time."""
    q, k, v = (torch.randn(1, seq, heads, head_dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    block_map = make_map(seq, heads, block, density, variable, device)
    mask = block_map.to_dense()

    def attend(mask: Tensor) -> Tensor:
        packed = BlockMap.from_dense(mask, block_map.q_offsets, block_map.kv_offsets, block_map.key_block)
        if flex:
            return compiled_flex(q, k, v, block_mask=packed.to_flex())
        return block_sparse_attention(q, k, v, packed, precision=precision)

    dense_backend, dense = min(dense_seconds(q, k, v, device).items(), key=lambda item: item[1])
    sparse = median_seconds(lambda: attend(mask), device, REPEATS)
    exact = scaled_dot_product_attention(q[:, :, :256].double(), k.double(), v.double())
    error = relative_error(attend(torch.ones_like(mask))[:, :, :256], exact)
    of_rows, limit = sparse_error(attend(mask), q, k, v, block_map), LIMITS.get(precision or "", LIMITS[dtype])
    density = block_map.density
    rate = 4 * heads * seq * seq * head_dim * density / sparse
    return {
        **origin(device), "backend": "flex" if flex else "ours", "dense_backend": dense_backend,
        "instructions": instruction_set(torch.int8 if precision == "int8" else dtype) if device == "cpu" else None,
        "dtype": str(dtype).removeprefix("torch."), "precision": precision,
        "head_dim": head_dim, "heads": heads, "seq": seq, "blocks": f"{'variable ' if variable else ''}{block}",
        "block_q": block, "block_kv": block, "density": density, "ms_dense": dense * 1e3, "ms_ours": sparse * 1e3,
        "speedup": dense / sparse, "fraction_of_ideal": dense / sparse * density,
        "fraction_of_gemm": rate / product_rate(dtype, device), "tflops_kept": rate / 1e12, "rel_l2_full": error,
        "rel_l2_rows": of_rows, "ok": error <= limit and of_rows <= limit,
    }  # fmt: skip


def measure_dense(dtype: torch.dtype, head_dim: int, seq: int, heads: int, device: str) -> list[dict[str, Any]]:
    """Return a row of each dense attention that is here: those of torch, and OpenVINO's."""
    q, k, v = (torch.randn(1, seq, heads, head_dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    seconds, work = dense_seconds(q, k, v, device), 4 * heads * seq * seq * head_dim
    fastest = min(seconds, key=lambda name: seconds[name])
    return [
        {
            **origin(device), "backend": name, "dense_backend": fastest, "dtype": str(dtype).removeprefix("torch."),
            "head_dim": head_dim, "heads": heads, "seq": seq, "blocks": None, "density": 1.0,
            "ms_dense": seconds[fastest] * 1e3, "ms_ours": taken * 1e3, "speedup": seconds[fastest] / taken,
            "fraction_of_ideal": seconds[fastest] / taken,
            "fraction_of_gemm": work / taken / product_rate(dtype, device),
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


def shapes(quick: bool) -> list[tuple[int, int, int, bool, float]]:
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
    flex: Annotated[bool, typer.Option(help="rows of compiled FlexAttention beside ours, for blocks of 128")] = False,
    quick: Annotated[bool, typer.Option(help="under a minute on two cores")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="rows; a run goes on where one stopped")] = None,
) -> None:
    """Print a table of speed-ups and write the rows as JSON."""
    if precision is not None:
        reason = reason_against(precision, device)
        if reason is not None:
            raise typer.BadParameter(f"{device} cannot run {precision}: {reason}", param_hint="--precision")
    cases, kind = Cases(json_file, device, float("inf"), {"heads": heads}), getattr(torch, dtype)
    for head_dim, seq in dict.fromkeys((head_dim, seq) for head_dim, seq, *_ in shapes(quick)):
        name = f"dense, {dtype}, {head_dim} x {seq:,}"
        cases.run(name, partial(measure_dense, kind, head_dim, seq, heads, device))
    for head_dim, seq, block, variable, density in shapes(quick):
        name = f"{dtype}, {head_dim} x {seq:,}, {'variable ' if variable else ''}{block}, {density}"
        run = partial(measure, kind, head_dim, seq, heads, block, variable, density, device)
        cases.run(f"ours, {name}", run)
        if precision is not None:
            cases.run(f"ours in {precision}, {name}", partial(run, precision))
        if flex and (block, variable) == (128, False):
            cases.run(f"flex, {name}", partial(run, flex=True))
    show(cases.rows, COLUMNS if precision is None else ("precision", *COLUMNS))


if __name__ == "__main__":
    typer.run(main)

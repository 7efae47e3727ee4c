"""Every Triton kernel against its reference on the same device, errors as figures; a part of `benchmarks.gpu`.

The reference gets the same numbers in float32. Without a GPU this needs TRITON_INTERPRET=1 in the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.attention import make_map, reason_against
from benchmarks.cases import Cases
from benchmarks.kmeans import inertia, make_rows
from benchmarks.rows import Row, origin
from sparse_kernels import antidiagonal_scores, block_mass, block_sparse_attention, kmeans

# A few times the unit roundoff of operands and output; E4M3 rounds the weights, against a maximum that moves.
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FP8_LIMIT = 5e-2
SCORE_LIMIT = 1e-4  # exact products, sums in float32
DENSITY = 0.4


@dataclass(frozen=True)
class Shape:
    """One problem; `variable` has blocks of each head's own sizes, and orders of its rows."""

    heads: int
    seq: int
    head_dim: int
    block: int
    variable: bool = False

    def __str__(self) -> str:
        blocks = "blocks of each head's own" if self.variable else f"blocks of {self.block}"
        return f"{self.heads} x {self.seq} x {self.head_dim}, {blocks}"


SHAPES = [Shape(4, 2100, 128, 128), Shape(4, 2100, 128, 100, variable=True), Shape(4, 2100, 64, 64)]
TINY = [Shape(2, 70, 32, 32), Shape(2, 70, 16, 24, variable=True)]


def operands(shape: Shape, dtype: torch.dtype, device: str, count: int) -> list[Tensor]:
    """Return tensors (1 h s d) that are views of (1 s h d), as diffusers hands them over."""
    generator = torch.Generator(device).manual_seed(0)
    size = (count, 1, shape.seq, shape.heads, shape.head_dim)
    return list(torch.randn(size, generator=generator, device=device).to(dtype).transpose(2, 3))


def orders(shape: Shape, device: str) -> dict[str, Tensor]:
    """Return orders of queries and keys, differently in each head, if the shape has them."""
    if not shape.variable:
        return {}
    generator = torch.Generator(device).manual_seed(1)
    drawn = torch.rand(2, 1, shape.heads, shape.seq, generator=generator, device=device).argsort(-1)
    return {"q_order": drawn[0], "kv_order": drawn[1]}


def judged(ours: Tensor, expected: Tensor, limit: float) -> Row:
    """Return the relative error |ours - expected| / |expected| and whether it is within its limit; NaN never is."""
    error = ((ours.double() - expected.double()).norm() / expected.double().norm()).item()
    return {"rel_error": error, "limit": limit, "ok": error <= limit}


def attention(shape: Shape, dtype: torch.dtype, device: str, precision: str | None = None) -> Row:
    """Return the errors of output and LSE."""
    q, k, v = operands(shape, dtype, device, 3)
    block_map = make_map(shape.seq, shape.heads, shape.block, DENSITY, shape.variable, device)
    options: dict[str, Any] = dict(return_lse=True, precision=precision, **orders(shape, device))
    out, lse = block_sparse_attention(q, k, v, block_map, backend="triton", **options)
    exact, exact_lse = block_sparse_attention(
        q.float(), k.float(), v.float(), block_map, backend="reference", **options
    )
    row = judged(out, exact, FP8_LIMIT if precision == "fp8" else LIMITS[dtype])
    return row | {"lse_error": (lse - exact_lse).abs().max().item(), "density": block_map.density}


def mass(shape: Shape, dtype: torch.dtype, device: str) -> Row:
    """Return the error of block masses."""
    q, k = operands(shape, dtype, device, 2)
    lse = (q.float() @ k.float().mT * shape.head_dim**-0.5).logsumexp(-1)
    block_map = make_map(shape.seq, shape.heads, shape.block, DENSITY, shape.variable, device)
    rest: Any = (lse, block_map.q_offsets, block_map.kv_offsets)
    given: dict[str, Any] = orders(shape, device)
    exact = block_mass(q.float(), k.float(), *rest, backend="reference", **given)
    return judged(block_mass(q, k, *rest, backend="triton", **given), exact, SCORE_LIMIT)


def antidiagonals(shape: Shape, dtype: torch.dtype, device: str, stride: int) -> Row:
    """Return the error of XAttention's scores."""
    q, k = operands(shape, dtype, device, 2)
    exact = antidiagonal_scores(q.float(), k.float(), shape.block, stride, backend="reference")
    return judged(antidiagonal_scores(q, k, shape.block, stride, backend="triton"), exact, SCORE_LIMIT)


def clusters(shape: Shape, dtype: torch.dtype, device: str) -> Row:
    """Return how far the inertia is off: rows between two centroids may fall either way."""
    x, start = make_rows(shape.heads, shape.seq, shape.head_dim, shape.seq // 32, device)
    x = x.to(dtype)
    ours, exact = (kmeans(x, start, iterations=5, tolerance=0, backend=name) for name in ("triton", "reference"))
    least = inertia(x, exact.centroids)
    error = abs(inertia(x, ours.centroids) / least - 1)
    moved = (ours.labels != exact.labels).float().mean().item()
    return {"rel_error": error, "limit": SCORE_LIMIT, "ok": error <= SCORE_LIMIT, "labels_differ": moved}


def kernels_of(shape: Shape, device: str, first_type: bool) -> dict[str, Callable[[Shape, torch.dtype, str], Row]]:
    """Return what runs on a shape; fewer for all types but the first, since every one is compiled anew."""
    kernels: dict[str, Any] = {"attention": attention, "block mass": mass}
    if not shape.variable:
        strides = (8, 16) if first_type else (8,)
        kernels |= {f"antidiagonals of {n}": partial(antidiagonals, stride=n) for n in strides}
        kernels["k-means"] = clusters
    if first_type:
        kernels["attention in int8"] = partial(attention, precision="int8")
    # The interpreter rounds to E4M3 wrongly, older devices not at all.
    if first_type and device == "cuda" and reason_against("fp8", device) is None:
        kernels["attention in fp8"] = partial(attention, precision="fp8")
    return kernels


def add_cases(cases: Cases, shapes: list[Shape], dtypes: list[torch.dtype], device: str) -> None:
    """Run every kernel over the types, those that pipelines use first, and over the shapes."""
    for dtype in dtypes:
        for shape in shapes if dtype == dtypes[0] else shapes[:2]:
            for name, kernel in kernels_of(shape, device, dtype == dtypes[0]).items():
                word = str(dtype).removeprefix("torch.")
                about = origin(device) | {"kernel": name, "dtype": word}
                run = partial(kernel, shape, dtype, device)
                cases.run(f"{name}, {word}, {shape}", lambda run=run, about=about: about | run())


@torch.no_grad()
def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    seconds: Annotated[float, typer.Option(help="no case starts after that")] = 300.0,
    smoke: Annotated[bool, typer.Option(help="tiny shapes on the CPU, in Triton's interpreter")] = False,
) -> None:
    """Compare and write rows."""
    device = "cpu" if smoke else "cuda"
    dtypes = [torch.float16, torch.float32] if smoke else [torch.bfloat16, torch.float16, torch.float32]
    add_cases(Cases(json_file, device, seconds), TINY if smoke else SHAPES, dtypes, device)


if __name__ == "__main__":
    typer.run(main)

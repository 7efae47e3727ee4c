"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels._backends import BACKENDS, choose, load_backend
from sparse_kernels._checks import (
    check_order,
    check_q_k,
    check_rows,
    check_shared,
    check_types,
    described,
    has_tangent,
)
from sparse_kernels.block_map import BlockMap
from sparse_kernels.block_sparse_attention.summaries import Summaries, check_summaries

EVERY_BACKEND = ("cpu", "triton", "flex", "reference")
PRECISIONS = ("int8", "fp8")
PACKAGE = "block_sparse_attention"


@overload
def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *,
    q_order: Tensor | None = None, kv_order: Tensor | None = None, scale: float | None = None,
    summaries: Summaries | None = None, return_lse: Literal[False] = False, backend: str | None = None,
    precision: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *,
    q_order: Tensor | None = None, kv_order: Tensor | None = None, scale: float | None = None,
    summaries: Summaries | None = None, return_lse: Literal[True, "visited"], backend: str | None = None,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def block_sparse_attention(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    *,
    q_order: Int[Tensor, "#b #h sq"] | None = None,
    kv_order: Int[Tensor, "#b #h skv"] | None = None,
    scale: float | None = None,
    summaries: Summaries | None = None,
    return_lse: Literal[False, True, "visited"] = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Float[Tensor, "b h sq d"] | tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return softmax attention over the visited blocks and, if asked, its natural-log LSE (float32) per row.

    `q_order[..., i]` is the row of `q` that stands at position i of the map, likewise `kv_order`; results are in
    the callers' row order. Rows that visit nothing are zero with an LSE of -inf. `scale` defaults to d**-0.5.
    All of `v` must be finite: values of keys beside visited ones, in the order, may be multiplied too, by zero.
    With `summaries` the blocks that are not visited answer through theirs, in the same softmax; the LSE is then that of
    all that answered, with "visited" that of the visited keys alone.
    `precision` rounds operands, for speed: "int8" those of q k (after SageAttention), "fp8" all of them to E4M3
    (after FPSAttention); it has no backward pass.
    ValueError on shapes, types or a map that do not fit, and when `backend` cannot run the call. On a GPU, which would
    have to be waited for, nobody reads what stands in the map and the orders: try a new one with backend="reference".
    """
    _check(q, k, v, block_map, q_order, kv_order)
    differentiable = _is_differentiable(q, k, v, summaries)
    _check_precision(precision, backend, differentiable)
    given_summaries = _given_summaries(summaries, return_lse, q, block_map, precision, backend, differentiable)
    if differentiable and backend is None:
        backend = "reference"  # the only one with derivatives
    package, accepted, given = _package(precision)
    work = "block-sparse attention runs"
    module = choose(package, work, backend, q, k, v, block_map, *given, accepted=accepted, level=3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = module.forward(q, k, v, block_map, q_order, kv_order, scale, *given, **given_summaries)
    return (out, lse) if return_lse else out


def outruns_sdpa(q: Float[Tensor, "b h s d"]) -> bool:
    """Return whether this device's kernel is known to compute attention over all keys faster than PyTorch's SDPA."""
    return q.device.type == "cpu" and load_backend(PACKAGE, "cpu").outruns_sdpa(q)


def backend_reasons(
    device: str = "cpu", dtype: torch.dtype = torch.float32, head_dim: int = 64
) -> dict[str, str | None]:
    """Return for each backend why it cannot run plain attention of such tensors on `device`, None where it can."""
    return _reasons(dtype, None, device, head_dim)


def precision_reasons(precision: str, device: str = "cpu") -> dict[str, str | None]:
    """Return for each backend that quantises why it cannot run `precision` on `device`, None where it can."""
    _check_precision(precision, None, False)
    return _reasons(torch.bfloat16, precision, device)


def _reasons(dtype: torch.dtype, precision: str | None, device: str, head_dim: int = 64) -> dict[str, str | None]:
    q = torch.zeros(1, 1, 64, head_dim, device=device, dtype=dtype)
    block_map = BlockMap.uniform(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device), 64, 64, 64, 64)
    package, accepted, given = _package(precision)
    return {name: load_backend(package, name, accepted).can_run(q, q, q, block_map, *given) for name in accepted}


def _package(precision: str | None) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return where the backends of a precision lie, their names, and what they are given of it."""
    return (PACKAGE, EVERY_BACKEND, ()) if precision is None else (f"{PACKAGE}.quantised", BACKENDS, (precision,))


def _is_differentiable(q: Tensor, k: Tensor, v: Tensor, summaries: Any) -> bool:
    """Return whether there may be a derivative of the call, by a backward pass or in forward mode."""
    means = summaries if isinstance(summaries, Summaries) else None
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, means)):
        return True
    return has_tangent(q, k, v, *(() if means is None else vars(means).values()))


def _check_precision(precision: str | None, backend: str | None, differentiable: bool) -> None:
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}, or None for no rounding")
    if backend == "flex":
        raise ValueError(f"backend flex has no precision {precision!r}; accepted: {', '.join(BACKENDS)}")
    if differentiable:
        raise ValueError(
            f"precision {precision!r} has no backward pass and no forward-mode derivative; "
            "call under torch.no_grad() and without tangents, or leave it out"
        )


def _given_summaries(
    summaries: Any, return_lse: Any, q: Tensor, block_map: BlockMap, precision: str | None, backend: str | None,
    differentiable: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return what backends are given of summaries: nothing where there are none."""
    if return_lse not in (False, True, "visited"):
        raise ValueError(f"return_lse must be False, True or 'visited', got {return_lse!r}")
    if summaries is None:
        return {}
    check_summaries(summaries, q, block_map)
    if precision is not None:
        raise ValueError(f"summaries are not rounded: leave precision {precision!r} out")
    if backend == "flex":
        raise ValueError(f"backend flex has no summaries; accepted: {', '.join(BACKENDS)}")
    if differentiable and backend not in (None, "reference"):
        raise ValueError(
            f"backend {backend} has no backward pass and no forward-mode derivative: "
            "call under torch.no_grad() and without tangents, or with 'reference'"
        )
    return {"summaries": summaries, "lse_of_visited": return_lse == "visited"}


def _check(q: Tensor, k: Tensor, v: Tensor, block_map: Any, q_order: Tensor | None, kv_order: Tensor | None) -> None:
    check_rows(q=q, k=k, v=v)
    if k.shape != v.shape:
        raise ValueError(f"k and v must be of one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    check_q_k(q, k)
    check_types(q=q, k=k, v=v)
    if not isinstance(block_map, BlockMap):
        raise ValueError(
            f"block_map must be a BlockMap, got {described(block_map)}: BlockMap.from_dense and BlockMap.uniform make "
            "one of a mask of blocks"
        )
    blocks = block_map.counts.shape[-1], block_map.kv_offsets.shape[-1] - 1
    if 0 in blocks:
        raise ValueError(
            f"block_map must have a query block and a key block at least, got {blocks[0]} and {blocks[1]}: rows that "
            "visit nothing are a block with a count of 0"
        )
    fields = ("counts", "indices", "q_offsets", "kv_offsets")
    check_shared(q=q, **{name: getattr(block_map, name) for name in fields})
    check_order("q_order", q_order, q, q.shape[2], read=False)  # as of the map, backends read what stands in them
    check_order("kv_order", kv_order, q, k.shape[2], read=False)

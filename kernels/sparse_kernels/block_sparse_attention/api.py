"""Check the arguments, choose a backend, call it."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_kernels.block_map import BlockMap

BACKENDS = ("cpu", "triton", "flex", "reference")
QUANTISED_BACKENDS = ("cpu", "triton", "reference")
PRECISIONS = ("int8", "fp8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@overload
def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *,
    q_order: Tensor | None = None, kv_order: Tensor | None = None, scale: float | None = None,
    return_lse: Literal[False] = False, backend: str | None = None, precision: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *,
    q_order: Tensor | None = None, kv_order: Tensor | None = None, scale: float | None = None,
    return_lse: Literal[True], backend: str | None = None, precision: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def block_sparse_attention(
    q: Float[Tensor, "b h sq d"],
    k: Float[Tensor, "b hkv skv d"],
    v: Float[Tensor, "b hkv skv d"],
    block_map: BlockMap,
    *,
    q_order: Int[Tensor, "b1 h1 sq"] | None = None,
    kv_order: Int[Tensor, "b1 h1 skv"] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Float[Tensor, "b h sq d"] | tuple[Float[Tensor, "b h sq d"], Float[Tensor, "b h sq"]]:
    """Return softmax attention over the visited blocks and, if asked, its natural-log LSE (float32) per row.

    `q_order[..., i]` is the row of `q` that stands at position i of the map, likewise `kv_order`; results are in
    the callers' row order. Rows that visit nothing are zero with an LSE of -inf. `scale` defaults to d**-0.5.
    `precision` rounds operands, for speed: "int8" those of q k (after SageAttention), "fp8" all of them to E4M3
    (after FPSAttention); it has no backward pass.
    ValueError on shapes, types or a map that do not fit, and when `backend` cannot run the call.
    """
    _check(q, k, v, block_map, q_order, kv_order)
    _check_precision(q, k, v, precision)
    module = _choose(q, k, v, block_map, backend, precision)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = module.forward(q, k, v, block_map, q_order, kv_order, scale, *_given(precision))
    return (out, lse) if return_lse else out


def outruns_sdpa(q: Float[Tensor, "b h s d"]) -> bool:
    """Return whether this device's kernel is known to compute attention over all keys faster than PyTorch's SDPA."""
    return q.device.type == "cpu" and _module("cpu").outruns_sdpa(q)


def backend_reasons(device: str = "cpu") -> dict[str, str | None]:
    """Return for each backend why it cannot run plain float32 attention on `device`, None where it can."""
    q = torch.zeros(1, 1, 64, 64, device=device)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    block_map = BlockMap.uniform(mask, 64, 64, 64, 64)
    return {name: _module(name).can_run(q, q, q, block_map) for name in BACKENDS}


def precision_reasons(precision: str, device: str = "cpu") -> dict[str, str | None]:
    """Return for each backend that quantises why it cannot run `precision` on `device`, None where it can."""
    q = torch.zeros(1, 1, 64, 64, device=device, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    block_map = BlockMap.uniform(mask, 64, 64, 64, 64)
    _check_precision(q, q, q, precision)
    return {name: _module(name, precision).can_run(q, q, q, block_map, precision) for name in QUANTISED_BACKENDS}


def _given(precision: str | None) -> tuple[str, ...]:
    return () if precision is None else (precision,)


def _module(name: str, precision: str | None = None) -> ModuleType:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; accepted: {', '.join(BACKENDS)}")
    if precision is not None and name not in QUANTISED_BACKENDS:
        raise ValueError(f"backend {name} has no precision {precision!r}; accepted: {', '.join(QUANTISED_BACKENDS)}")
    folder = "" if precision is None else "quantised."
    return importlib.import_module(f"sparse_kernels.block_sparse_attention.{folder}{name}")


def _choose(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, backend: str | None, precision: str | None
) -> ModuleType:
    arguments = (q, k, v, block_map, *_given(precision))
    if backend is not None:
        module = _module(backend, precision)
        reason = module.can_run(*arguments)
        if reason:
            raise ValueError(f"backend {backend} cannot run this call: {reason}")
        return module
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _module("reference")  # the only one with a backward
    best = "triton" if q.is_cuda else "cpu"
    module = _module(best, precision)
    reason = module.can_run(*arguments)
    if reason is None:
        return module
    warnings.warn(
        f"block-sparse attention runs on the slow reference backend, since {best} cannot run: {reason}", stacklevel=3
    )
    return _module("reference", precision)


def _check_precision(q: Tensor, k: Tensor, v: Tensor, precision: str | None) -> None:
    if precision is None:
        return
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}, or None for no rounding")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError(f"precision {precision!r} has no backward pass; call under torch.no_grad() or leave it out")


def _check(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, q_order: Tensor | None, kv_order: Tensor | None
) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"q, k, v must be (b h s d), k and v of one shape, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q and k must agree on batch and head_dim, and q's heads be a multiple of k's, "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must share one of float32, bfloat16, float16, got {q.dtype}, {k.dtype}, {v.dtype}")
    batch, heads = q.shape[:2]
    shared = {"counts": block_map.counts, "indices": block_map.indices}
    shared |= {"q_offsets": block_map.q_offsets, "kv_offsets": block_map.kv_offsets}
    shared |= {name: order for name, order in (("q_order", q_order), ("kv_order", kv_order)) if order is not None}
    for name, field in shared.items():
        if field.shape[0] not in (1, batch) or field.shape[1] not in (1, heads):
            raise ValueError(
                f"{name} must start with (1 or {batch}, 1 or {heads}) for batch and heads, got {tuple(field.shape)}"
            )
        if field.device != q.device:
            raise ValueError(f"{name} is on {field.device}, q on {q.device}: move it there")
    for name, order, length in (("q_order", q_order, q.shape[2]), ("kv_order", kv_order, k.shape[2])):
        if order is not None and (order.dtype != torch.int64 or order.ndim != 3 or order.shape[2] != length):
            raise ValueError(
                f"{name} must be int64 of shape (b|1, h|1, {length}), got {order.dtype} {tuple(order.shape)}"
            )

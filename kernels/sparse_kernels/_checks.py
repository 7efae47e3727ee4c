"""Refuse arguments that do not fit, with a sentence that says what was given, what is accepted, what to do."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.autograd import forward_ad

from sparse_kernels import _extension

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_rows(**tensors: Any) -> None:
    """Refuse what is no tensor (b h rows d) with numbers in it, or is on another device than the first."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name} must be a tensor (b h rows d) and not empty, got {described(x)}")
    check_devices(**tensors)


def check_devices(**tensors: Tensor) -> None:
    """Refuse tensors on another device than the first."""
    (first, x), *others = tensors.items()
    for name, other in others:
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, {first} on {x.device}: move it there")


def check_types(accepted: tuple[torch.dtype, ...] = DTYPES, **tensors: Any) -> None:
    """Refuse tensors that do not share one of the accepted types."""
    given = [x.dtype if isinstance(x, Tensor) else type(x).__name__ for x in tensors.values()]
    if given[0] not in accepted or len(set(given)) > 1:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        raise ValueError(
            f"{', '.join(tensors)} must {'share' if len(given) > 1 else 'be'} one of {names}, "
            f"got {', '.join(map(str, given))}: convert with .to()"
        )


def check_q_k(q: Tensor, k: Tensor) -> None:
    """Refuse q and k that cannot be multiplied; q may have a multiple of k's heads."""
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "q and k must agree on batch and head_dim, and q's heads be a multiple of k's, "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )


def check_shared(**tensors: Tensor) -> None:
    """Refuse tensors that do not begin with the batch and heads of the first, or with 1, or are on another device."""
    (_, x), *others = tensors.items()
    batch, heads = x.shape[:2]
    for name, field in others:
        if field.ndim < 2 or field.shape[0] not in (1, batch) or field.shape[1] not in (1, heads):
            raise ValueError(
                f"{name} must start with (1 or {batch}, 1 or {heads}) for batch and heads, got {tuple(field.shape)}"
            )
    check_devices(**tensors)


def shared_offsets(name: str, offsets: Any, x: Tensor, rows: int) -> Int[Tensor, "#b #h n1"]:
    """Return offsets as int32 (b|1 h|1 n+1) for the heads of `x`; on the CPU they are seen to rise from 0 to `rows`."""
    offsets = as_offsets(name, offsets, x.device, least=1)
    check_shared(**{"the tokens": x, name: offsets})
    if offsets.device.type == "cpu":
        check_rises(name, offsets, rows)
    return offsets


def as_offsets(name: str, offsets: Any, device: torch.device, least: int = 0) -> Int[Tensor, "#b #h n1"]:
    """Return offsets of `least` blocks or more as int32 (b|1 h|1 n+1); those that all heads share move to `device`."""
    fits = isinstance(offsets, Tensor) and offsets.dtype in (torch.int32, torch.int64) and offsets.ndim in (1, 3)
    if not fits or offsets.shape[-1] <= least or offsets.is_meta > (device.type == "meta"):
        raise ValueError(
            f"{name} must be int32 or int64 of shape (n+1,) or (b|1, h|1, n+1), got {described(offsets)}: "
            "give where each block begins, and where the last one ends"
        )
    return offsets.to(device, torch.int32).view(1, 1, -1) if offsets.ndim == 1 else offsets.to(torch.int32)


def check_rises(name: str, offsets: Int[Tensor, "#b #h n1"], length: int) -> None:
    """Refuse offsets that do not rise from 0 to the length; reads from the device."""
    rises = (offsets[..., 0] == 0) & (offsets[..., -1] == length) & (offsets.diff() >= 0).all(-1)
    if not rises.all():
        raise ValueError(f"{name} must rise from 0 to the sequence length {length}")


def check_order(name: str, order: Any, x: Tensor, rows: int, read: bool = True) -> None:
    """Refuse an order that is not int64 (b|1 h|1 s) for the heads of `x` or, if it is read on the CPU, lacks a row."""
    if order is None:
        return
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 3 or order.shape[2] != rows:
        raise ValueError(f"{name} must be int64 of shape (b|1, h|1, {rows}), got {described(order)}")
    check_shared(**{"the tokens": x, name: order})
    if read and order.device.type == "cpu":
        check_permutes(name, order)


def check_permutes(name: str, order: Int[Tensor, "#b #h s"]) -> None:
    """Refuse an order that does not hold every row once; reads from the device."""
    if not _permutes(order):
        raise ValueError(f"{name} must hold every row 0 to {order.shape[2] - 1} once")


def _permutes(order: Int[Tensor, "#b #h s"]) -> bool:
    if _extension.at_hand(order):
        return bool(torch.ops.sparse_kernels.permutes_cpu(order.flatten(0, 1).contiguous()))
    least, most = (int(row) for row in order.aminmax())
    fits = least >= 0 and most < order.shape[2]
    return fits and bool(torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, True).all())


def check_precision(precision: Any) -> None:
    """Refuse what is no precision of products."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")


def has_tangent(*tensors: Tensor) -> bool:
    """Return whether one of the tensors is differentiated in forward mode; in a graph nobody looks."""
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors if x.is_floating_point())


def refuse_tangents(work: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError on forward-mode differentiation: operators with a backward pass alone lose tangents."""
    if has_tangent(*tensors):
        raise NotImplementedError(
            f"{work} has no forward-mode derivative, only a backward pass: use torch.autograd.grad"
        )


def described(x: object) -> str:
    """Return what an argument is, for an error."""
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__

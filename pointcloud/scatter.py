"""Sums, means, maxima and softmax over groups of rows, with torch alone."""

from __future__ import annotations

from typing import Any, Literal, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor


def scatter(
    values: Float[Tensor, "rows ..."],
    group: Int[Tensor, " rows"],
    groups: int,
    reduce: Literal["sum", "mean", "max"],
    backend: str | None = None,
) -> Float[Tensor, "groups ..."]:
    """Reduce the rows of each group; a group without rows gives 0.

    Equal maxima share the gradient evenly. `backend="torch_scatter"` takes that library, which sends it to one of them.
    Sums of half precision are kept in float32. ValueError on an unknown name and on a group that is not in [0, groups)
    (on the CPU; CUDA stops with its own error).
    """
    group = _checked(values, group, groups)
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f"unknown reduce {reduce!r}; accepted: sum, mean, max")
    if backend == "torch_scatter":
        return _library().scatter(values, group, dim=0, dim_size=groups, reduce=reduce)
    if backend is not None:
        raise ValueError(f"unknown backend {backend!r}; accepted: None, 'torch_scatter'")
    if reduce == "max":
        trains = values.requires_grad and torch.is_grad_enabled()
        return (_Maximum.apply if trains else _largest)(values, group, groups)
    sums = _sum(_wide(values), group, groups)
    if reduce == "mean":
        counts = _sum(torch.ones_like(group), group, groups).clamp(min=1)
        sums = sums / counts.view(-1, *[1] * (values.ndim - 1))
    return sums.to(values.dtype)


def scatter_softmax(
    values: Float[Tensor, "rows ..."], group: Int[Tensor, " rows"], groups: int
) -> Float[Tensor, "rows ..."]:
    """Return the softmax over the rows of each group, apart for every further index; errors as those of `scatter`."""
    group = _checked(values, group, groups)
    wide = _wide(values)
    largest = _largest(wide.detach(), group, groups)
    powers = (wide - largest[group]).exp()
    return (powers / _sum(powers, group, groups)[group]).to(values.dtype)


@no_type_check  # a compiler follows an autograd function into its own code, not into a check around it
class _Maximum(torch.autograd.Function):
    """The maximum of each group.

    Torch's own gradients of `scatter_reduce` and `index_reduce` count the initial 0 as one more winner where the
    maximum is 0, even with `include_self=False`: after a ReLU, part of the gradient would be lost.
    """

    @staticmethod
    def forward(values: Tensor, group: Tensor, groups: int) -> Tensor:
        return _largest(values, group, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        values, group, _ = inputs
        ctx.save_for_backward(values, group, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        values, group, largest = ctx.saved_tensors
        winners = values == largest[group]
        counts = _sum(_wide(winners.to(values.dtype)), group, largest.shape[0]).clamp(min=1)
        return winners * (gradient / counts).to(gradient.dtype)[group], None, None


def _largest(values: Tensor, group: Tensor, groups: int) -> Tensor:
    index = group.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    start = values.new_zeros(groups, *values.shape[1:])
    return start.scatter_reduce(0, index, values, "amax", include_self=False)


def _sum(values: Tensor, group: Tensor, groups: int) -> Tensor:
    return values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _checked(values: Tensor, group: Tensor, groups: int) -> Tensor:
    # Not `len`, which would fix the number of rows in an exported network.
    if group.shape != values.shape[:1]:
        raise ValueError(f"group must have {values.shape[0]} entries, one for each row, got {tuple(group.shape)}")
    # A compiler cannot look at numbers, and on CUDA a look would wait for the device.
    if not (torch.compiler.is_compiling() or group.is_cuda) and group.numel():
        least, most = group.aminmax()
        if least < 0 or most >= groups:
            raise ValueError(f"groups must be in [0, {groups}), got {int(least)} to {int(most)}")
    return group.long()


def _library() -> Any:
    try:
        import torch_scatter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("torch-scatter is not there: pip install torch-scatter") from error
    return torch_scatter

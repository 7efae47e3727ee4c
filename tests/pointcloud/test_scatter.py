"""Reductions over groups against loops in float64, their gradients, ties, and groups without rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pointcloud.scatter import scatter, scatter_softmax

REDUCES = ("sum", "mean", "max")
GROUPS = 7  # 2 and 6 have no rows
GROUP = torch.tensor([0, 5, 1, 1, 3, 0, 4, 1, 3, 0, 4])


def by_loop(values: Tensor, reduce: str) -> Tensor:
    work: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    rows = [values[number == GROUP] for number in range(GROUPS)]
    return torch.stack([work[reduce](row, 0) if len(row) else values.new_zeros(values.shape[1:]) for row in rows])


def draw(*rest: int, seed: int = 0) -> Tensor:
    return torch.randn(len(GROUP), *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient_of(work: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    leaf = values.clone().requires_grad_()
    out = work(leaf)
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1)))
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
@pytest.mark.parametrize("group_type", [torch.int64, torch.int32])
def test_equals_a_loop(reduce: Any, rest: tuple[int, ...], group_type: torch.dtype) -> None:
    values, group = draw(*rest) - 5, GROUP.to(group_type)  # maxima are negative, those of empty groups 0
    assert torch.allclose(scatter(values, group, GROUPS, reduce), by_loop(values, reduce), atol=1e-12)
    ours = gradient_of(lambda x: scatter(x, group, GROUPS, reduce), values)
    assert torch.allclose(ours, gradient_of(lambda x: by_loop(x, reduce), values), atol=1e-12)


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradients_of_both_orders(reduce: Any) -> None:
    values = draw(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scatter(x, GROUP, GROUPS, reduce), values)
    assert torch.autograd.gradgradcheck(lambda x: scatter(x, GROUP, GROUPS, reduce), values)


def test_equal_maxima_share_the_gradient_evenly_also_at_zero() -> None:
    """Torch's own gradients lose a share where the maximum is 0, the usual one after a ReLU."""
    values = draw(4, seed=3).round().relu()
    assert ((by_loop(values, "max") == 0)[GROUP] & (values == 0)).sum() > 3
    ours = gradient_of(lambda x: scatter(x, GROUP, GROUPS, "max"), values)
    assert torch.allclose(ours, gradient_of(lambda x: by_loop(x, "max"), values), atol=1e-12)


def test_infinite_and_nan_maxima() -> None:
    values = torch.tensor([[-torch.inf], [-torch.inf], [torch.nan], [1.0]])
    out = scatter(values, torch.tensor([0, 0, 1, 1]), 3, "max")
    assert out[0] == -torch.inf and out[1].isnan() and out[2] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduce", REDUCES)
def test_half_precision_rounds_only_the_result(dtype: torch.dtype, reduce: Any) -> None:
    values = draw(3).to(dtype)
    out = scatter(values, GROUP, GROUPS, reduce)
    assert out.dtype == dtype
    assert torch.equal(out, by_loop(values.double(), reduce).to(dtype))
    many = torch.ones(1000, 1, dtype=dtype, requires_grad=True)  # a sum in bfloat16 would stop at 256
    total = scatter(many, torch.zeros(1000, dtype=torch.int64), 1, "sum")
    total.sum().backward()
    assert total.item() == 1000 and many.grad is not None and many.grad.dtype == dtype


@pytest.mark.parametrize("work", [*REDUCES, "softmax"])
def test_no_rows(work: Any) -> None:
    values, group = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    out = scatter_softmax(values, group, 2) if work == "softmax" else scatter(values, group, 2, work)
    assert torch.equal(out, torch.zeros(0 if work == "softmax" else 2, 3))


def test_softmax_equals_a_loop_with_gradients() -> None:
    values = draw(3)

    def loop(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for number in GROUP.unique():
            out[number == GROUP] = x[number == GROUP].softmax(0)
        return out

    assert torch.allclose(scatter_softmax(values, GROUP, GROUPS), loop(values), atol=1e-12)
    ours = gradient_of(lambda x: scatter_softmax(x, GROUP, GROUPS), values)
    assert torch.allclose(ours, gradient_of(loop, values), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: scatter_softmax(x, GROUP, GROUPS), values.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_sums_to_one_and_bears_large_values(dtype: torch.dtype) -> None:
    values = (draw(3) * 1e4).to(dtype)
    values[0, 0] = -torch.inf
    out = scatter_softmax(values, GROUP, GROUPS)
    sums = scatter(out.float(), GROUP, GROUPS, "sum")
    expected = torch.bincount(GROUP, minlength=GROUPS).clamp(max=1)[:, None].expand(GROUPS, 3)
    assert (
        out.dtype == dtype and out[0, 0] == 0 and (sums - expected).abs().max() < 1e-2 * (dtype != torch.float32) + 1e-6
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own compiler
@pytest.mark.usefixtures("unchecked")
def test_compiles_without_a_break() -> None:
    def work(x: Tensor) -> Tensor:
        reduced = scatter(x, GROUP, GROUPS, "mean") + scatter(x, GROUP, GROUPS, "max")
        return scatter_softmax(x, GROUP, GROUPS) + reduced[GROUP]

    compiled = torch.compile(work, backend="aot_eager", fullgraph=True)
    assert torch.allclose(gradient_of(compiled, draw(2)), gradient_of(work, draw(2)), atol=1e-12)
    assert torch.allclose(compiled(draw(2)), work(draw(2)), atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    values = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"in \[0, 2\), got 0 to 2"):
        scatter(values, torch.tensor([0, 2]), 2, "max")
    with pytest.raises(ValueError, match=r"in \[0, 2\), got -1 to 0"):
        scatter_softmax(values, torch.tensor([0, -1]), 2)
    with pytest.raises(ValueError, match="2 entries, one for each row"):
        scatter(values, torch.tensor([0]), 2, "sum")
    with pytest.raises(ValueError, match="unknown reduce 'min'; accepted: sum, mean, max"):
        scatter(values, torch.tensor([0, 1]), 2, "min")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        scatter(values, torch.tensor([0, 1]), 2, "sum", backend="cuda")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_scatter", None)
    with pytest.raises(ImportError, match=r"pip install torch-scatter"):
        scatter(torch.zeros(2, 3), torch.tensor([0, 1]), 2, "sum", backend="torch_scatter")


@pytest.mark.parametrize("reduce", REDUCES)
def test_equals_torch_scatter(reduce: Any) -> None:
    pytest.importorskip("torch_scatter")
    values = draw(3)
    theirs = scatter(values, GROUP, GROUPS, reduce, backend="torch_scatter")
    assert torch.allclose(scatter(values, GROUP, GROUPS, reduce), theirs, atol=1e-12)
    ours = gradient_of(lambda x: scatter(x, GROUP, GROUPS, reduce), values)
    other = gradient_of(lambda x: scatter(x, GROUP, GROUPS, reduce, backend="torch_scatter"), values)
    assert torch.allclose(ours, other, atol=1e-12)

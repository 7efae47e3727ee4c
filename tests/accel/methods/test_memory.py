"""What methods hold at once: no float32 tensor of a whole layer, which is gigabytes where a video is long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from accel.attention.call import LayerMemory
from accel.attention.masks.head_modes import rank_columns
from accel.methods import sparse_vdit
from accel.methods.re_ttention import ReTtention, _missing
from accel.methods.sparse_vdit import SparseVDiT
from tests.accel.calls import GRID, in_dtype, make_call

HEADS, CHANNELS = 4, 16
OF_A_HEAD = GRID.tokens * CHANNELS  # numbers


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest float32 tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.dtype == torch.float32]
        self.numbers = max([self.numbers, *(x.numel() for x in made)])
        return out


def test_columns_are_ranked_a_head_at_a_time() -> None:
    call = in_dtype(make_call(heads=HEADS), torch.bfloat16)
    with Largest() as largest:
        columns = rank_columns(call.q, call.k, call.scale, GRID, rows=CHANNELS)
    assert 0 < largest.numbers <= OF_A_HEAD
    chosen = torch.linspace(0, GRID.tokens - 1, CHANNELS).long()
    scores = call.q[:, :, chosen].double() @ call.k.double().transpose(-1, -2) * call.scale
    falling = scores.softmax(-1).sum(2).gather(-1, columns)
    assert torch.equal(columns.sort(-1).values, torch.arange(GRID.tokens).expand(columns.shape))
    assert (falling.diff() < 1e-5).all()


def test_errors_of_patterns_are_found_a_head_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    call = in_dtype(make_call(heads=HEADS, batch=2), torch.bfloat16)
    out, lse = call.v, call.q[..., 0].float()
    approximation = (out.float() * 1.1 + 0.01).bfloat16()
    lse[:, 1, ::3] = -torch.inf  # rows that are not computed
    lse[0, 2] = -torch.inf
    monkeypatch.setattr(sparse_vdit, "execute", lambda call, plan: (approximation, lse))
    plan = SparseVDiT(block=16).patterns(GRID)["diagonal"]
    with Largest() as largest:
        errors = sparse_vdit._relative_error(call, plan, out)
    assert 0 < largest.numbers <= 2 * OF_A_HEAD
    rows = lse.isfinite()[..., None]
    exact = ((approximation - out).double().square() * rows).sum((2, 3))
    exact = exact / (out.double().square() * rows).sum((2, 3)).clamp(min=1e-12)
    assert torch.allclose(errors.double(), exact, rtol=1e-5) and errors[0, 2] == 0


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_missing_is_found_a_head_at_a_time(dtype: torch.dtype, scaled: bool) -> None:
    call = in_dtype(make_call(heads=HEADS, batch=2), torch.bfloat16)
    full, kept, ratio = call.q, call.v, call.k[..., 0].float().sigmoid() if scaled else None
    with Largest() as largest:
        missing = _missing(full, kept, ratio, dtype)
    assert 0 < largest.numbers <= 2 * OF_A_HEAD * (1 if dtype == torch.bfloat16 else HEADS)
    exact = full.float() - (kept.float() if ratio is None else kept * ratio[..., None])
    assert torch.equal(missing, exact.to(dtype))


def test_a_low_rank_is_found_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def keep(residual: Tensor, dtype: torch.dtype, **options: Any) -> None:
        assert dtype == torch.bfloat16
        seen.append(residual.dtype)

    monkeypatch.setattr("accel.methods.re_ttention.keep_residual", keep)
    for rank in (4, None):
        method = ReTtention(density=0.5, block=16, dense_steps=0.0, residual_rank=rank)
        method.plan(in_dtype(make_call(), torch.bfloat16), LayerMemory())
    assert seen == [torch.float32, torch.bfloat16]

"""`torch.autocast` around a pipeline, and queries, keys and values of several types without it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attention.call import Geometry, Progress
from accel.methods.registry import SPARSE_METHODS, by_name
from accel.models import session as session_module
from accel.models.session import Session

STEPS = 4


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return torch's attention of rows before heads."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def session_of(name: str, step: int = 0, **options: float) -> Session:
    """Return a session that stands at a step of a small video."""
    session = Session(by_name(name, **options), 1)
    session.denoising.begin_call(Geometry(4, 4, 6), Progress(step, STEPS, "cond"))
    return session


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys as their norms give them under autocast, and values as a linear layer does."""
    q, k, v = torch.randn(3, 1, 96, 2, 16).unbind()
    return q, k, v.bfloat16()


def test_types_are_those_of_autocast() -> None:
    q, k, v = given()
    session = session_of("full", block=16)
    with torch.autocast("cpu", torch.bfloat16):
        out = session.attend(0, q, k, v, stock=sdpa)
    expected = sdpa(*(x.bfloat16().float() for x in (q, k, v)))
    assert out.dtype == torch.bfloat16 and (out - expected).abs().max() < 2e-2
    assert [record.kind for record in session.denoising.current.records.read()] == ["sparse"]
    assert not session.denoising.current.obstacles


def generated(name: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what a method makes of the same tensors in each of the steps."""
    session, outs = session_of(name, density=0.4, dense_steps=0.25), []
    for step in range(STEPS):
        session.denoising.begin_call(Geometry(4, 4, 6), Progress(step, STEPS, "cond"))
        outs.append(session.attend(0, *tensors, stock=sdpa))
    return outs


@pytest.mark.parametrize("name", SPARSE_METHODS)
def test_plans_are_the_same_under_autocast(name: str) -> None:
    rounded = tuple(x.bfloat16() for x in given())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a window of density")
        outside = generated(name, rounded)
        with torch.autocast("cpu", torch.bfloat16):
            inside = generated(name, rounded)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(inside, outside, strict=True))


def test_the_pipelines_own_attention_stays_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "outruns_sdpa", lambda q: False)
    seen: list[tuple[bool, torch.dtype]] = []

    def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return v

    with torch.autocast("cpu", torch.float16):
        session_of("adaspa", dense_steps=1.0).attend(0, *given(), stock=stock)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(True, torch.float16)]


def test_several_types_without_autocast_run_dense() -> None:
    q, k, v = given()
    session = session_of("full", block=16)
    reason = "q, k and v differ in type: torch.float32, torch.float32 and torch.bfloat16"
    with pytest.warns(UserWarning, match=reason):
        assert session.attend(0, q, k, v, stock=lambda q, k, v, mask: v) is v
    assert session.denoising.current.obstacles == {reason: 1}

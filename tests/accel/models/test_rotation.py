"""Rotary embeddings that are applied beside the stock processor: the same but for rounding, or left to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import accel
from accel.models import dispatched_processor
from accel.models.rotation import ROTATED_DTYPES, rotate, rotation
from tests.accel.models.loops import STEPS, Loop, difference

ROTATED = ("wan-2.1", "wan-2.2-ti2v", "wan-vace", "wan-animate", "skyreels-v2")


@pytest.fixture
def rotated(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return what will have been rotated outside of stock processors."""
    seen: list[Tensor] = []

    def noted(x: Tensor, turns: Tensor) -> Tensor:
        seen.append(x)
        return rotate(x, turns)

    monkeypatch.setattr(dispatched_processor, "rotate", noted)
    return seen


def given(x: Tensor, tables: Any) -> dict[str, Any]:
    """Return arguments of a processor."""
    return {"hidden_states": x, "encoder_hidden_states": None, "rotary_emb": tables}


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return the rule of Wan's processor: even channels are real parts, odd ones imaginary."""
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2).to(x.dtype)


@pytest.mark.parametrize("dtype", ROTATED_DTYPES)
@pytest.mark.parametrize("tokens", [1, 37])
def test_rotation_is_the_rule(tokens: int, dtype: torch.dtype) -> None:
    tables = (torch.randn(1, tokens, 1, 24), torch.randn(1, tokens, 1, 24))
    # As one projection for queries, keys and values leaves them where no norm follows.
    x = torch.randn(2, tokens, 3, 5, 24).to(dtype)[:, :, 1]
    before = x.clone()
    with torch.no_grad():
        turns = rotation(given(x, tables))
        assert turns is not None
        torch.testing.assert_close(rotate(x, turns), turned(x, *tables), rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", ROTATED)
@pytest.mark.parametrize("fused", [False, True])
def test_a_model_says_the_same(name: str, fused: bool, rotated: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(name)
    if fused:
        loop.transformer.fuse_qkv_projections()
    with accel.enabled(loop, "full", block=16) as handle:
        ours = loop()
        assert len(rotated) == 2 * len(handle.stats()) >= 2 * STEPS, "queries and keys of every self-attention"
        monkeypatch.setattr(dispatched_processor, "rotation", lambda *given: None)
        assert difference(ours, loop()) < 1e-6
        assert len(rotated) == 2 * len(handle.stats()), "of the first time only"


def test_bfloat16_says_the_same(rotated: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop("wan-2.1")
    loop.transformer.to(torch.bfloat16)
    loop.transformer.rope.float()  # as `from_pretrained` leaves it
    inputs = {name: x.bfloat16() for name, x in loop.inputs.items() if torch.is_tensor(x) and x.is_floating_point()}
    with accel.enabled(loop, "full", block=16):
        ours = loop(**inputs)
        assert {x.dtype for x in rotated} == {torch.bfloat16}
        monkeypatch.setattr(dispatched_processor, "rotation", lambda *given: None)
        assert difference(ours, loop(**inputs)) < 1e-2


def test_the_rest_is_left_to_the_stock_processor() -> None:
    x, tables = torch.randn(1, 6, 2, 8), (torch.randn(1, 6, 1, 8), torch.randn(1, 6, 1, 8))
    assert rotation(given(x, tables)) is None, "gradients"
    with torch.no_grad():
        assert rotation(given(x, tables)) is not None
        assert rotation(given(x, None)) is None and rotation({"hidden_states": x}) is None
        assert rotation(given(x, tables) | {"encoder_hidden_states": x}) is None, "cross-attention"
        assert rotation(given(x.double(), tables)) is None, "turned in float64"
        assert rotation(given(x, tuple(table.bfloat16() for table in tables))) is None, "turned in bfloat16"
        assert rotation(given(x.to("meta"), tables)) is None

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from accel.models.padding import rows_by_sample, valid_rows, without_padding

VALID = torch.tensor([[True] * 6 + [False] * 2, [True] * 4 + [False] * 4])
PAIRS = (VALID[:, None] & VALID[:, :, None])[:, None]


def added(mask: Tensor) -> Tensor:
    """Return what is added to logits for a mask of booleans."""
    return torch.where(mask, 0.0, -1e9)


@pytest.mark.parametrize(
    "mask",
    [VALID, VALID[:, None], VALID[:, None, None], PAIRS, PAIRS.repeat(1, 3, 1, 1), added(PAIRS), added(VALID[:, None])],
    ids=["rows", "b1s", "b11s", "pairs", "heads", "added pairs", "added rows"],
)
def test_padding_is_read(mask: Tensor) -> None:
    found = valid_rows(mask, 2, 8)
    assert found is not None and torch.equal(found, VALID)


def test_rows_of_padding_may_look_at_valid_rows() -> None:
    pairs = PAIRS.clone()
    pairs[..., 0] = True  # as some models do, so that no row is empty
    found = valid_rows(pairs, 2, 8)
    assert found is not None and torch.equal(found, VALID)


def test_rounded_numbers_say_padding_too() -> None:
    """LTX-2 adds -1e4 to logits, which is -9984 in bfloat16."""
    found = valid_rows((1 - PAIRS.bfloat16()) * -1e4, 2, 8)
    assert found is not None and torch.equal(found, VALID)


class Largest(TorchFunctionMode):
    """Keeps how many numbers the largest tensor has that is made."""

    size = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and look at what it gives."""
        out = func(*args, **(kwargs or {}))
        self.size = max(self.size, out.numel() if isinstance(out, Tensor) else 0)
        return out


def test_heads_and_samples_are_read_one_after_the_other() -> None:
    """All pairs of all heads are gigabytes, of a mask that the model has there in any case."""
    padding, strengths = added(PAIRS).repeat(1, 3, 1, 1), torch.full((2, 3, 8, 8), -0.5)
    with Largest() as largest:
        assert valid_rows(strengths, 2, 8) is None
    assert largest.size == 8 * 8, "one head of one sample"
    with Largest() as largest:
        assert valid_rows(padding, 2, 8) is not None
    assert largest.size == 2 * 8 * 8, "one head at a time"


CAUSAL = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
BLOCKS = torch.ones(1, 1, 2, 2, dtype=torch.bool).tril().repeat_interleave(4, 2).repeat_interleave(4, 3)
HEADS = torch.stack([VALID, VALID.flip(1)], 1)[:, :, None]


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL,
        BLOCKS,
        HEADS,
        torch.zeros(2, 8, dtype=torch.bool),
        torch.full((2, 1, 1, 8), -0.5),
        VALID[:, None, None, :5],
    ],
    ids=["causal", "blocks", "heads", "nothing", "bias", "length"],
)
def test_anything_else_is_no_padding(mask: Tensor) -> None:
    assert valid_rows(mask, len(mask), 8) is None


@pytest.mark.parametrize("valid", [VALID, VALID[:1].repeat(2, 1), VALID.flip(1)])
def test_valid_rows_are_those_of_masked_attention(valid: Tensor) -> None:
    q, k, v = torch.randn(3, 2, 8, 2, 4).unbind()
    seen: list[int | None] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, sample: int | None) -> Tensor:
        seen.append(sample)
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    samples = rows_by_sample(valid)
    assert samples is not None
    out = without_padding(attend, q, k, v, samples)
    masked = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=valid[:, None, None])
    assert torch.allclose(out[valid], masked.transpose(1, 2)[valid], atol=1e-6)
    assert not out[~valid].any() and seen == ([None] if (valid == valid[0]).all() else [0, 1])


def test_without_padding_nothing_is_left_out() -> None:
    assert rows_by_sample(torch.ones(2, 8, dtype=torch.bool)) is None

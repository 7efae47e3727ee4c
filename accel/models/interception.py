"""Attention calls of processors that ask for no backend: caught while that one processor runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

# (q, k, v, mask, arguments, number of the call) -> out, all (b h s d)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any], int], Tensor]


class SDPAInterception(TorchFunctionMode):
    """Sends the calls of torch's scaled_dot_product_attention inside a `with` block, on this thread, to `attend`.

    Calls that `attend` makes itself go to torch. The others have a number each, which comes from `numbers`.
    """

    def __init__(self, attend: Attend, numbers: Iterator[int]):
        super().__init__()
        self.attend, self.numbers = attend, numbers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer one call of a function of torch's."""
        if func is Tensor.unflatten:  # which torch.compile cannot follow from here, as it is written in Python
            func = torch.unflatten
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*_bound(*args, **(kwargs or {})), next(self.numbers))


def _bound(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    arguments = dict(dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    return query, key, value, attn_mask, arguments


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]) -> Tensor:
    """Return torch's attention of a call that was caught."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **arguments)


def scores_are_skipped() -> bool:
    """Whether diffusers answers torch's attention with the values as they are here (perturbed attention guidance)."""
    return any(isinstance(mode, AttentionScoreSkipFunctionMode) for mode in _get_current_function_mode_stack())

"""Wraps processors that ask diffusers' dispatcher for attention."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from accel.attention.heads import HeadShare
from accel.models.compiling import outside_graphs
from accel.models.dispatch import Route, private_backend
from accel.models.operator import attend_in_graph, may_be_in_graph
from accel.models.parallel import attend_over_heads, reason_against_exchange
from accel.models.rotation import rotate, rotation
from accel.models.session import Session
from accel.models.wrapped_processor import SparseAttentionProcessor, obstacle_in


class Dispatched(SparseAttentionProcessor):
    """Of a processor that asks diffusers' dispatcher for a backend of its own, which is ours here."""

    def __init__(self, stock: Any, session: Session, layer: int):
        super().__init__(stock, session, layer)
        self._inner = copy.copy(stock)
        self._inner._attention_backend = private_backend()
        self._inner._parallel_config = Route(self._attend_dispatched, self._parallel_config)

    @SparseAttentionProcessor._parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.stock._parallel_config = config
        self._inner._parallel_config = Route(self._attend_dispatched, config)

    @SparseAttentionProcessor.scale.setter
    def scale(self, scale: Any) -> None:
        self.stock.scale = self._inner.scale = scale

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock processor with our backend."""
        return self._inner(*args, **kwargs)

    def _attend_dispatched(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]
    ) -> Tensor:
        is_plain = isinstance(mask, Tensor | None) and arguments["parallel_config"] is None
        if not (is_plain and torch.compiler.is_compiling() and may_be_in_graph(q, k, v)):
            return self.attend_eagerly(q, k, v, mask, arguments)
        said = {name: value for name, value in arguments.items() if name != "parallel_config"}
        return attend_in_graph(q, k, v, mask, self._number, 0, **said)

    @outside_graphs
    def attend_eagerly(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any], call: int = 0
    ) -> Tensor:
        """Return the attention of one call, planned, run and noted by the session, all tensors (b s h d)."""
        config, reason = arguments.get("parallel_config"), None
        if config is not None:
            reason = obstacle_in(arguments) or reason_against_exchange(q, k, config)
            if reason is None and torch.is_grad_enabled() and q.requires_grad:
                reason = "gradients are asked for under context parallelism"
            if reason is None:
                return attend_over_heads(self._attend_with, q, k, v, mask, arguments)
        return self._attend_with(q, k, v, mask, arguments, None, reason)

    def _attend_with(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any],
        share: HeadShare | None, obstacle: str | None = None,
    ) -> Tensor:  # fmt: skip
        backend = self._attention_backend

        def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend, **arguments)

        return self._attend(stock, 0, q, k, v, mask, arguments, share, obstacle)


class Rotated(Dispatched):
    """Of a dispatched processor whose rotary embedding is applied here, where that is quicker."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock processor with our backend, without a rotary embedding if that is left to the backend."""
        if torch.compiler.is_compiling():
            return super().run(*args, **kwargs)
        given = inspect.signature(self._inner.__call__).bind(*args, **kwargs)
        turns = rotation(given.arguments)
        if turns is None:
            return super().run(*args, **kwargs)
        inner = copy.copy(self._inner)  # for this call alone: other threads may be in another
        inner._parallel_config = Route(partial(self._attend_rotated, turns), self._parallel_config)
        given.arguments["rotary_emb"] = None
        return inner(*given.args, **given.kwargs)

    def _attend_rotated(
        self, turns: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]
    ) -> Tensor:
        return self._attend_dispatched(rotate(q, turns), rotate(k, turns), v, mask, arguments)

"""Wraps processors that call torch's attention themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.models.compiling import outside_graphs
from accel.models.interception import SDPAInterception, sdpa
from accel.models.operator import attend_in_graph, may_be_in_graph
from accel.models.wrapped_processor import SparseAttentionProcessor

# Dynamo compiles all that torch does anew where the graph of a processor breaks in which attention is to be caught.
BREAKS_GRAPHS = ("MochiAttnProcessor2_0",)
UNCAUGHT = "no attention came through torch's scaled_dot_product_attention (a chosen attention backend?)"


class Intercepted(SparseAttentionProcessor):
    """Of any other processor: torch's attention is caught while it runs."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock processor, its attention calls answered by the session."""
        if torch.compiler.is_compiling() and self._is_traced and may_be_in_graph(*args, *kwargs.values()):
            return self._run(self._ask_operator, args, kwargs)
        return self._run_eagerly(args, kwargs)

    @property
    def _is_traced(self) -> bool:
        """Whether graphs go through the stock processor, which may have weights that learn."""
        kind = type(self.stock)
        is_whole = kind.__module__.startswith("diffusers.") and kind.__name__ not in BREAKS_GRAPHS
        return is_whole and self._parallel_config is None and not torch.is_grad_enabled()

    @outside_graphs
    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run(self._ask_session, args, kwargs)

    def _run(self, answer: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        numbers = itertools.count()
        with SDPAInterception(answer, numbers):
            out = self.stock(*args, **kwargs)
        if next(numbers) == 0:
            self.session.note_dense(UNCAUGHT)
        return out

    def _ask_operator(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any], call: int
    ) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attend_in_graph(q, k, v, mask, self._number, call, **arguments).transpose(1, 2)

    def _ask_session(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any], call: int
    ) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.attend_eagerly(q, k, v, mask, arguments, call).transpose(1, 2)

    def attend_eagerly(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any], call: int = 0
    ) -> Tensor:
        """Return the attention of one call, planned, run and noted by the session, all tensors (b s h d)."""

        def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return sdpa(q, k, v, mask, arguments).transpose(1, 2)

        name = type(self.stock).__name__
        unknown = f"accel cannot follow context parallelism through {name}" if self._parallel_config else None
        return self._attend(stock, call, q, k, v, mask, arguments, obstacle=unknown)

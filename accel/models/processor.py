"""The attention processor: the stock one does all but the attention itself, which the session supplies."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from diffusers.hooks._helpers import AttentionProcessorRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from accel.attention.heads import HeadShare
from accel.models.compiling import outside_graphs
from accel.models.dispatch import Route, backend_is_chosen, private_backend
from accel.models.interception import SDPAInterception, sdpa
from accel.models.operator import attend_in_graph, may_be_in_graph, number_of
from accel.models.parallel import attend_over_heads, reason_against_exchange
from accel.models.rotation import ROTATING, rotate, rotation
from accel.models.session import Session

# Dynamo compiles all that torch does anew where the graph of a processor breaks in which attention is to be caught.
BREAKS_GRAPHS = ("MochiAttnProcessor2_0",)
UNCAUGHT = "no attention came through torch's scaled_dot_product_attention (a chosen attention backend?)"


class SparseAttentionProcessor:
    """Wraps the processor of one self-attention module; made by `wrap_processor`."""

    def __init__(self, stock: Any, session: Session, layer: int):
        self.stock, self.session, self.layer = stock, session, layer
        self._number = number_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the class, which is made at run time."""
        return wrap_processor, (self.stock, self.session, self.layer, isinstance(self, _Dispatched))

    @property
    def _attention_backend(self) -> Any:
        """The user's backend, which dense calls use; `set_attention_backend` writes it."""
        return getattr(self.stock, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.stock, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.stock._parallel_config = config

    def _attend(
        self, stock: Callable[..., Tensor], number: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
        arguments: dict[str, Any], share: HeadShare | None = None, obstacle: str | None = None,
    ) -> Tensor:  # fmt: skip
        return self.session.attend(
            self.layer,
            q,
            k,
            v,
            stock=stock,
            mask=mask,
            scale=arguments["scale"],
            number=number,
            chosen=self._attention_backend is not None or backend_is_chosen(),
            obstacle=obstacle or _obstacle(arguments),
            share=share,
        )

    @property
    def scale(self) -> Any:
        """How much an IP-Adapter counts, which `set_ip_adapter_scale` writes; AttributeError where there is none."""
        return self.stock.scale

    @scale.setter
    def scale(self, scale: Any) -> None:
        self.stock.scale = scale


class _Dispatched(SparseAttentionProcessor):
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
            reason = _obstacle(arguments) or reason_against_exchange(q, k, config)
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


class _Rotated(_Dispatched):
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


class _Intercepted(SparseAttentionProcessor):
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


def wrap_processor(stock: Any, session: Session, layer: int, dispatched: bool = True) -> SparseAttentionProcessor:
    """Return a wrapper whose call has the stock processor's signature.

    Diffusers' attention modules read that signature and drop arguments that it does not name. A call that is not of
    diffusers need not ask its dispatcher.
    """
    dispatched = dispatched and type(stock).__call__.__module__.startswith("diffusers.")
    rotated = dispatched and type(stock).__name__ in ROTATING
    kind = _Rotated if rotated else _Dispatched if dispatched else _Intercepted
    return _kind(type(stock), kind)(stock, session, layer)


@cache
def _kind(stock: type[Any], base: type[SparseAttentionProcessor]) -> type[SparseAttentionProcessor]:
    """Return one class for all layers: compiled code is kept by class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def new(cls: Any, *args: Any) -> Any:
        return object.__new__(cls) if args else _plain(stock)

    call.__signature__ = inspect.signature(stock.__call__)  # type: ignore[attr-defined]
    made: type[SparseAttentionProcessor] = type(f"Sparse{stock.__name__}", (base,), {"__call__": call, "__new__": new})
    with suppress(ValueError):  # diffusers can skip the layers of a few classes only
        AttentionProcessorRegistry.register(made, AttentionProcessorRegistry.get(stock))
    return made


def _plain(stock: type[Any]) -> Any:
    """Return a stock processor: of the class that is set diffusers makes others, for layers without an IP-Adapter.

    ValueError where that class is an IP-Adapter's, as when one is unloaded.
    """
    if issubclass(stock, nn.Module):
        what = "accel is on; call accel.disable(pipe) before loading or unloading an IP-Adapter"
        raise ValueError(f"{what}, and enable again afterwards")
    return stock()


def _obstacle(arguments: dict[str, Any]) -> str | None:
    """Return what of a call's arguments no plan can obey, or None."""
    if arguments["is_causal"]:
        return "the attention is causal"
    return "the attention has dropout" if arguments["dropout_p"] else None

"""The attention processor: the stock one does all but the attention itself, which the session supplies."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from accel.models.dispatch import backend_is_chosen, private_backend, receive
from accel.models.session import Session


class SparseAttentionProcessor:
    """Wraps the processor of one self-attention module; made by `wrap_processor`."""

    def __init__(self, stock: Any, session: Session, layer: int):
        self.stock = stock
        self.session = session
        self.layer = layer
        self._inner = copy.copy(stock)
        self._inner._attention_backend = private_backend()
        self._dense_backend = stock._attention_backend

    @property
    def _attention_backend(self) -> Any:
        """The user's backend, which dense calls use; `set_attention_backend` writes it."""
        return self._dense_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self._dense_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self._inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self._inner._parallel_config = config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock processor, its attention calls answered by `_attend`."""
        with receive(self._attend):
            return self._inner(*args, **kwargs)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        stock = partial(dispatch_attention_fn, q, k, v, attn_mask=mask, backend=self._dense_backend, **arguments)
        return self.session.attend(
            self.layer,
            q,
            k,
            v,
            stock=stock,
            scale=arguments["scale"],
            chosen=self._dense_backend is not None or backend_is_chosen(),
            obstacle=_obstacle(mask, arguments),
        )


def _obstacle(mask: Tensor | None, arguments: dict[str, Any]) -> str | None:
    """Return what of a call's arguments no plan can obey, or None."""
    if mask is not None:
        return "the model passes an attention mask"
    if arguments["is_causal"]:
        return "the attention is causal"
    if arguments["parallel_config"] is not None:
        return "the sequence is shared among devices (context parallelism)"
    return "the attention has dropout" if arguments["dropout_p"] else None


def wrap_processor(stock: Any, session: Session, layer: int) -> SparseAttentionProcessor:
    """Return a wrapper whose call has the stock processor's signature.

    Diffusers' attention modules read that signature and drop arguments that it does not name.
    """

    def call(self: SparseAttentionProcessor, *args: Any, **kwargs: Any) -> Any:
        return SparseAttentionProcessor.__call__(self, *args, **kwargs)

    call.__signature__ = inspect.signature(type(stock).__call__)  # type: ignore[attr-defined]
    kind = type(f"Sparse{type(stock).__name__}", (SparseAttentionProcessor,), {"__call__": call})
    return kind(stock, session, layer)

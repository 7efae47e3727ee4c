"""The attention processor: the stock one does all but the attention itself, which the session supplies."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from accel.models.dispatch import backend_is_chosen, private_backend, receive
from accel.models.interception import SDPAInterception, sdpa
from accel.models.session import Session


class SparseAttentionProcessor:
    """Wraps the processor of one self-attention module.

    A processor that asks diffusers' dispatcher for a backend of its own is given ours; of any other (`dispatched` is
    False) torch's attention is caught while it runs.
    """

    def __init__(self, stock: Any, session: Session, layer: int, dispatched: bool = True):
        self.stock, self.session, self.layer, self.dispatched = stock, session, layer, dispatched
        self._inner = stock
        if dispatched:
            self._inner = copy.copy(stock)
            self._inner._attention_backend = private_backend()
        # Attention modules read the signature of this attribute, and drop arguments that it does not name.
        self.__call__ = _Signature(stock)

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
        self.stock._parallel_config = self._inner._parallel_config = config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock processor, its attention calls answered by the session."""
        with self._catching(itertools.count()):
            return self._inner(*args, **kwargs)

    def _catching(self, numbers: Any) -> AbstractContextManager[Any]:
        if self.dispatched:
            return receive(partial(self._attend_dispatched, numbers))
        return SDPAInterception(partial(self._attend_sdpa, numbers))

    def _attend_dispatched(
        self, numbers: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]
    ) -> Tensor:
        backend = self._attention_backend

        def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend, **arguments)

        return self._attend(numbers, stock, q, k, v, mask, arguments)

    def _attend_sdpa(
        self, numbers: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, arguments: dict[str, Any]
    ) -> Tensor:
        def stock(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return sdpa(q, k, v, mask, arguments).transpose(1, 2)

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self._attend(numbers, stock, q, k, v, mask, arguments).transpose(1, 2)

    def _attend(
        self, numbers: Any, stock: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        return self.session.attend(
            self.layer,
            q,
            k,
            v,
            stock=stock,
            mask=mask,
            scale=arguments["scale"],
            number=next(numbers),
            chosen=self._attention_backend is not None or backend_is_chosen(),
            obstacle=_obstacle(arguments),
        )


class _Signature:
    """A call of the stock processor that says how it may be called."""

    def __init__(self, stock: Any):
        self.stock = stock

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.stock.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.stock(*args, **kwargs)


def _obstacle(arguments: dict[str, Any]) -> str | None:
    """Return what of a call's arguments no plan can obey, or None."""
    if arguments["is_causal"]:
        return "the attention is causal"
    if arguments.get("parallel_config") is not None:
        return "the sequence is shared among devices (context parallelism)"
    return "the attention has dropout" if arguments["dropout_p"] else None


def set_processor(module: nn.Module, processor: Any) -> None:
    """Give an attention module a processor, whether or not diffusers has a method for that on its class."""
    module._modules.pop("processor", None)  # one that is a module cannot be replaced by one that is not
    module.processor = processor


def unwrap_processors(transformer: nn.Module) -> None:
    """Put the stock processors back, wherever in the transformer ours are."""
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, SparseAttentionProcessor):
            set_processor(module, processor.stock)

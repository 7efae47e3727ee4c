"""The attention processor: the stock one does all but the attention itself, which the session supplies."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import cache
from typing import Any

from diffusers.hooks._helpers import AttentionProcessorRegistry
from torch import nn

from accel.models.dispatched_processor import Dispatched, Rotated
from accel.models.intercepted_processor import Intercepted
from accel.models.rotation import ROTATING
from accel.models.session import Session
from accel.models.wrapped_processor import SparseAttentionProcessor


def wrap_processor(stock: Any, session: Session, layer: int, dispatched: bool = True) -> SparseAttentionProcessor:
    """Return a wrapper whose call has the stock processor's signature.

    Diffusers' attention modules read that signature and drop arguments that it does not name. A call that is not of
    diffusers need not ask its dispatcher.
    """
    dispatched = dispatched and type(stock).__call__.__module__.startswith("diffusers.")
    rotated = dispatched and type(stock).__name__ in ROTATING
    kind = Rotated if rotated else Dispatched if dispatched else Intercepted
    return _kind(type(stock), kind)(stock, session, layer)


@cache
def _kind(stock: type[Any], base: type[SparseAttentionProcessor]) -> type[SparseAttentionProcessor]:
    """Return one class for all layers: compiled code is kept by class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def new(cls: Any, *args: Any) -> Any:
        return object.__new__(cls) if args else _plain(stock)

    def reduce(self: Any) -> tuple[Any, ...]:  # without the class, which is made at run time
        return wrap_processor, (self.stock, self.session, self.layer, issubclass(base, Dispatched))

    call.__signature__ = inspect.signature(stock.__call__)  # type: ignore[attr-defined]
    members = {"__call__": call, "__new__": new, "__reduce__": reduce}
    made: type[SparseAttentionProcessor] = type(f"Sparse{stock.__name__}", (base,), members)
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

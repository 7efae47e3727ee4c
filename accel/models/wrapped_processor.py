"""What all wrapped attention processors have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from accel.attention.heads import HeadShare
from accel.models.dispatch import backend_is_chosen
from accel.models.operator import number_of
from accel.models.session import Session


class SparseAttentionProcessor:
    """Wraps the processor of one self-attention module; made by `wrap_processor`."""

    def __init__(self, stock: Any, session: Session, layer: int):
        self.stock, self.session, self.layer = stock, session, layer
        self._number = number_of(self)

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
            obstacle=obstacle or obstacle_in(arguments),
            share=share,
        )

    @property
    def scale(self) -> Any:
        """How much an IP-Adapter counts, which `set_ip_adapter_scale` writes; AttributeError where there is none."""
        return self.stock.scale

    @scale.setter
    def scale(self, scale: Any) -> None:
        self.stock.scale = scale


def obstacle_in(arguments: dict[str, Any]) -> str | None:
    """Return what of a call's arguments no plan can obey, or None."""
    if arguments["is_causal"]:
        return "the attention is causal"
    return "the attention has dropout" if arguments["dropout_p"] else None

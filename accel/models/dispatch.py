"""A private attention backend in diffusers' dispatcher: it hands q, k, v to whoever made the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

NAME = "_accel"
# (q, k, v, mask, arguments) -> out
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], Tensor]


@dataclass(frozen=True, eq=False)
class Route:
    """Where the calls of one processor go, in the place of its parallel configuration, which it carries along.

    The dispatcher hands that argument on to backends as it is. A context variable would break the graphs of a
    compiled transformer.
    """

    attend: Attend
    parallel_config: Any


def private_backend() -> AttentionBackendName:
    """Return our member of diffusers' backend names, added at the first use.

    The dispatcher is a closed enumeration; nothing but processors that ask for this name is affected.
    """
    if NAME not in AttentionBackendName._value2member_map_:
        member = str.__new__(AttentionBackendName, NAME)
        member._name_, member._value_ = "ACCEL", NAME
        AttentionBackendName._member_map_["ACCEL"] = member
        AttentionBackendName._value2member_map_[NAME] = member
        AttentionBackendName._member_names_.append("ACCEL")
        _AttentionBackendRegistry.register(member)(_attend)
    return AttentionBackendName(NAME)


def backend_is_chosen() -> bool:
    """Whether the user chose a backend for all models, by diffusers' `attention_backend` or environment variable."""
    return _AttentionBackendRegistry.get_active_backend()[0] != AttentionBackendName.NATIVE


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
) -> Tensor:
    if not isinstance(_parallel_config, Route):
        raise ValueError(f"the attention backend {NAME!r} is for accel's own processors; choose one of diffusers'")
    arguments = dict(dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    arguments["parallel_config"] = _parallel_config.parallel_config
    return _parallel_config.attend(query, key, value, attn_mask, arguments)

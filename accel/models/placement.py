"""Processors on the attention modules of a transformer: set, taken off again, and missed when others stand there."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from accel.models.denoising import Generation
from accel.models.parallel import text_is_split
from accel.models.session import Session
from accel.models.wrapped_processor import SparseAttentionProcessor


def set_processor(module: nn.Module, processor: Any) -> None:
    """Give an attention module a processor, whether or not diffusers has a method for that on its class.

    A stock processor with weights, as an IP-Adapter's, stays a part of the module, which moves and saves them; ours
    stands before it.
    """
    module.__dict__.pop("processor", None)
    if isinstance(getattr(processor, "stock", None), nn.Module):
        module.__dict__["processor"] = processor
    else:
        module._modules.pop("processor", None)  # one that is a module cannot be replaced by one that is not
        module.processor = processor


def unwrap_processors(transformer: nn.Module) -> None:
    """Put the stock processors back, wherever in the transformer ours are."""
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, SparseAttentionProcessor):
            set_processor(module, processor.stock)
    # What `unfuse_qkv_projections` will set again, of models where fused projections have processors of their own.
    kept: dict[str, Any] = getattr(transformer, "original_attn_processors", None) or {}
    for name, processor in kept.items():
        if isinstance(processor, SparseAttentionProcessor):
            kept[name] = processor.stock


def watch(transformer: nn.Module, session: Session, modules: Iterable[nn.Module] = ()) -> None:
    """Look, when a generation starts, how devices share the transformer, and whether `modules` have our processors.

    Both may change at any time. Nothing is kept alive, and a copy of the transformer is not watched.
    """
    own, watched = weakref.ref(transformer), [weakref.ref(module) for module in modules]

    def look(generation: Generation) -> None:
        alive = own()
        generation.in_pieces = alive is None or text_is_split(alive)
        present: list[Any] = [module for module in (reference() for reference in watched) if module is not None]
        lost = sum(getattr(module.processor, "session", None) is not session for module in present)
        if lost:
            session.warn_once(f"{lost} layers had their processors replaced after accel.enable; call it again")

    session.denoising.at_start = look

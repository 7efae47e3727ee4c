"""Attach a method to a diffusers pipeline or transformer, and take it off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel.attention.call import Geometry
from accel.methods import Method, by_name
from accel.models.adapters import adapter_for
from accel.models.processor import SparseAttentionProcessor, wrap_processor
from accel.models.progress import HOOK, ProgressHook, install_hook, remove_hook
from accel.models.records import CallRecord, summarize
from accel.models.session import Session


class Handle:
    """What `enable` returns: what happened, and the way back."""

    def __init__(self, transformers: list[nn.Module], sessions: list[Session]):
        self._transformers = transformers
        self._sessions = sessions

    def stats(self) -> list[CallRecord]:
        """Return one record for each self-attention call of the latest generation."""
        records = [record for session in self._sessions for record in session.records]
        return sorted(records, key=lambda record: record.step)

    @property
    def geometry(self) -> Geometry | None:
        """The token grid of the latest call."""
        return next((session.geometry for session in self._sessions if session.geometry is not None), None)

    def memory_bytes(self) -> int:
        """Return how much the method remembers at this moment, in bytes; nothing between generations."""
        return sum(session.memory_bytes() for session in self._sessions)

    def peak_memory_bytes(self) -> int:
        """Return the most that the method remembered between two steps of the latest generation, in bytes."""
        return sum(session.peak_memory_bytes for session in self._sessions)

    def summary(self) -> str:
        """Return a few lines on the method, what it is attached to and what the latest generation did."""
        method = self._sessions[0].method
        names = ", ".join(f"{type(t).__name__} ({s.layers} layers)" for t, s in self._pairs())
        lines = [f"{method} on {names}"]
        facts = summarize(self.stats())
        if facts["calls"]:
            density, recall = facts["density"], facts["recall"]
            lines.append(
                f"latest generation: {facts['calls']} attention calls, {facts['sparse_calls']} sparse"
                + (f" at density {density:.3f}" if density is not None else "")
                + (f", recall {recall:.3f}" if recall is not None else "")
                + f", {facts['dense_steps']} dense steps, {facts['attention_seconds']:.2f} s in attention"
            )
        return "\n".join(lines)

    def disable(self) -> None:
        """Put the stock processors back and remove the hook; calling it twice does no harm."""
        for transformer in self._transformers:
            _detach(transformer)

    def _pairs(self) -> list[tuple[nn.Module, Session]]:
        return list(zip(self._transformers, self._sessions, strict=True))


def enable(pipe_or_transformer: Any, method: str | Method = "svg-ear", **options: Any) -> Handle:
    """Attach `method` (an object, or a name with its options) to a pipeline's transformers, or to one transformer.

    Attaching again replaces what was attached. ValueError when nothing supported is found, or the name or its
    options are unknown.
    """
    if isinstance(method, str):
        method = by_name(method, **options)
    elif options:
        raise ValueError(f"options {', '.join(options)} only go with a method's name; set them on the object")
    transformers = _transformers(pipe_or_transformer)
    adapters = [adapter_for(transformer) for transformer in transformers]
    pipeline = None if isinstance(pipe_or_transformer, nn.Module) else pipe_or_transformer
    sessions = []
    for transformer, adapter in zip(transformers, adapters, strict=True):
        _detach(transformer)
        session = Session(method, len(adapter.self_attention(transformer)))
        install_hook(transformer, ProgressHook(session, adapter, pipeline))
        transformer.set_attn_processor(_processors(transformer, session))
        sessions.append(session)
    return Handle(transformers, sessions)


def disable(pipe_or_transformer: Any) -> None:
    """Take off whatever is attached; nothing happens where nothing is."""
    for transformer in _transformers(pipe_or_transformer):
        _detach(transformer)


@contextmanager
def enabled(pipe_or_transformer: Any, method: str | Method = "svg-ear", **options: Any) -> Iterator[Handle]:
    """Attach for the duration of a `with` block, also when it ends in an exception."""
    handle = enable(pipe_or_transformer, method, **options)
    try:
        yield handle
    finally:
        handle.disable()


def attn_processors(transformer: nn.Module, method: str | Method = "svg-ear", **options: Any) -> dict[str, Any]:
    """Return processors for `transformer.set_attn_processor`, and install the progress hook that they need."""
    method = by_name(method, **options) if isinstance(method, str) else method
    adapter = adapter_for(transformer)
    _detach(transformer)
    session = Session(method, len(adapter.self_attention(transformer)))
    install_hook(transformer, ProgressHook(session, adapter, None))
    return _processors(transformer, session)


def _transformers(pipe_or_transformer: Any) -> list[Any]:
    if isinstance(pipe_or_transformer, nn.Module):
        return [pipe_or_transformer]
    found = [getattr(pipe_or_transformer, name, None) for name in ("transformer", "transformer_2")]
    transformers = [transformer for transformer in found if isinstance(transformer, nn.Module)]
    if not transformers:
        raise ValueError(
            f"{type(pipe_or_transformer).__name__} has no transformer; "
            "give a diffusers video pipeline or its transformer"
        )
    return transformers


def _processors(transformer: Any, session: Session) -> dict[str, Any]:
    """Return all processors of the transformer, those of video self-attention wrapped."""
    layers = {name: layer for layer, name in enumerate(adapter_for(transformer).self_attention(transformer))}
    processors = {}
    for key, stock in transformer.attn_processors.items():
        layer = layers.get(key.removesuffix(".processor"))
        processors[key] = stock if layer is None else wrap_processor(stock, session, layer)
    return processors


def _detach(transformer: Any) -> None:
    registry = getattr(transformer, "_diffusers_hook", None)
    if registry is not None and registry.get_hook(HOOK) is not None:
        remove_hook(transformer)
    processors = transformer.attn_processors
    if any(isinstance(processor, SparseAttentionProcessor) for processor in processors.values()):
        transformer.set_attn_processor(
            {k: p.stock if isinstance(p, SparseAttentionProcessor) else p for k, p in processors.items()}
        )

"""Attach a method to a diffusers pipeline or transformer, and take it off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel.attention.call import Geometry
from accel.methods.method import Method
from accel.methods.registry import DEFAULT_METHOD, METHODS, by_name
from accel.models.adapters import adapter_for, transformers_of
from accel.models.processor import SparseAttentionProcessor, wrap_processor
from accel.models.progress import ProgressHook, install_hook, installed_hook, remove_hook
from accel.models.records import CallRecord, summarize
from accel.models.session import Session


class Handle:
    """What `enable` returns: what happened, and the way back."""

    def __init__(self, hooks: list[tuple[nn.Module, ProgressHook]]):
        self._hooks = hooks

    @property
    def _generations(self) -> list[Any]:
        return [hook.session.denoising.latest for _, hook in self._hooks]

    def stats(self) -> list[CallRecord]:
        """Return one record for each self-attention call of the latest generation."""
        records = [record for generation in self._generations for record in generation.records.read()]
        return sorted(records, key=lambda record: record.step)

    @property
    def geometry(self) -> Geometry | None:
        """The token grid of the latest call."""
        return next((each.geometry for each in self._generations if each.geometry is not None), None)

    def memory_bytes(self) -> int:
        """Return how much the method remembers at this moment, in bytes; nothing between generations."""
        return sum(generation.memory_bytes() for generation in self._generations)

    def peak_memory_bytes(self) -> int:
        """Return the most that the method remembered between two steps of the latest generation, in bytes."""
        return sum(generation.peak_memory_bytes for generation in self._generations)

    def summary(self) -> str:
        """Return a few lines on the method, what it is attached to and what the latest generation did."""
        names = ", ".join(f"{type(module).__name__} ({hook.session.layers} layers)" for module, hook in self._hooks)
        lines = [f"{self._hooks[0][1].session.method} on {names}"]
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
        """Put the stock processors back and remove the hook; what was attached since then stays."""
        for transformer, hook in self._hooks:
            if installed_hook(transformer) is hook:
                _detach(transformer)


def enable(pipe_or_transformer: Any, method: str | Method | None = DEFAULT_METHOD, **options: Any) -> Handle:
    """Attach `method` (an object, or a name with its options) to a pipeline's transformers, or to one transformer.

    Attaching again replaces what was attached. ValueError when nothing supported is found, or the name or its
    options are unknown.
    """
    chosen = _method(method, options)
    pipeline = None if isinstance(pipe_or_transformer, nn.Module) else pipe_or_transformer
    hooks = [(each, _hook(each, chosen, pipeline)) for each in _transformers(pipe_or_transformer)]
    for transformer, hook in hooks:
        _attach(transformer, hook)
    return Handle(hooks)


def disable(pipe_or_transformer: Any) -> None:
    """Take off whatever is attached; nothing happens where nothing is."""
    for transformer in _transformers(pipe_or_transformer):
        _detach(transformer)


@contextmanager
def enabled(pipe_or_transformer: Any, method: str | Method | None = DEFAULT_METHOD, **options: Any) -> Iterator[Handle]:
    """Attach for a `with` block, also when it ends in an exception; what was attached before it is back then."""
    before = [(each, installed_hook(each)) for each in _transformers(pipe_or_transformer)]
    handle = enable(pipe_or_transformer, method, **options)
    try:
        yield handle
    finally:
        handle.disable()
        for transformer, hook in before:
            if hook is not None and installed_hook(transformer) is None:
                _attach(transformer, hook)


def attn_processors(
    transformer: nn.Module, method: str | Method | None = DEFAULT_METHOD, **options: Any
) -> dict[str, Any]:
    """Return processors for `transformer.set_attn_processor`, and install the progress hook that they need.

    ValueError as `enable` raises it.
    """
    hook = _hook(transformer, _method(method, options), None)
    _detach(transformer)
    install_hook(transformer, hook)
    return _processors(transformer, hook.session)


def _method(method: str | Method | None, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return by_name(method, **options)
    if not isinstance(method, Method):
        raise ValueError(f"method is {method!r}; give the name of one ({', '.join(METHODS)}) or a method object")
    if options:
        raise ValueError(f"options {', '.join(options)} only go with a method's name; set them on the object")
    return method


def _transformers(pipe_or_transformer: Any) -> list[Any]:
    if isinstance(pipe_or_transformer, nn.Module):
        return [pipe_or_transformer]
    transformers = transformers_of(pipe_or_transformer)
    if not transformers:
        raise ValueError(
            f"{type(pipe_or_transformer).__name__} has no transformer; "
            "give a diffusers video pipeline or its transformer"
        )
    return transformers


def _hook(transformer: nn.Module, method: Method, pipeline: Any) -> ProgressHook:
    adapter = adapter_for(transformer)
    return ProgressHook(Session(method, len(adapter.self_attention(transformer))), adapter, pipeline)


def _processors(transformer: Any, session: Session) -> dict[str, Any]:
    """Return all processors of the transformer, those of video self-attention wrapped."""
    layers = {name: layer for layer, name in enumerate(adapter_for(transformer).self_attention(transformer))}
    processors = {}
    for key, stock in transformer.attn_processors.items():
        layer = layers.get(key.removesuffix(".processor"))
        processors[key] = stock if layer is None else wrap_processor(stock, session, layer)
    return processors


def _attach(transformer: Any, hook: ProgressHook) -> None:
    _detach(transformer)
    install_hook(transformer, hook)
    transformer.set_attn_processor(_processors(transformer, hook.session))


def _detach(transformer: Any) -> None:
    hook = installed_hook(transformer)
    if hook is not None:
        hook.session.denoising.latest.end()  # one that was interrupted still remembers
        remove_hook(transformer)
    processors = transformer.attn_processors
    if any(isinstance(processor, SparseAttentionProcessor) for processor in processors.values()):
        transformer.set_attn_processor(
            {k: p.stock if isinstance(p, SparseAttentionProcessor) else p for k, p in processors.items()}
        )

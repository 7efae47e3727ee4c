"""Attach a method, a cache or both to a diffusers pipeline or transformer, and take them off again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from accel.attention.call import Geometry
from accel.caching import registry as caches
from accel.caching.hook import install_cache, installed_cache, remove_cache
from accel.caching.policy import Policy
from accel.caching.resting import Resting
from accel.methods.method import Method
from accel.methods.preset import Preset
from accel.methods.registry import METHODS, PRESET, from_text
from accel.models.adapters import adapter_for, transformers_of
from accel.models.processor import SparseAttentionProcessor, set_processor, unwrap_processors, wrap_processor
from accel.models.progress import ProgressHook, install_hook, installed_hook, remove_hook
from accel.models.records import BlockRecord, CallRecord, block_shares, summarize
from accel.models.session import Session


@dataclass(frozen=True)
class Attachment:
    """What one transformer carries: the hook that knows the step, and the cache."""

    transformer: Any
    hook: ProgressHook
    resting: Resting | None


class Handle:
    """What `enable` returns: what happened, and the way back."""

    def __init__(self, attachments: list[Attachment]):
        self._attachments = attachments

    @property
    def _generations(self) -> list[Any]:
        return [each.hook.session.denoising.latest for each in self._attachments]

    def stats(self) -> list[CallRecord]:
        """Return one record for each self-attention call of the latest generation."""
        records = [record for generation in self._generations for record in generation.records.read()]
        return sorted(records, key=lambda record: record.step)

    def blocks(self) -> list[BlockRecord]:
        """Return what became of each stretch of blocks in the latest generation; nothing without a cache."""
        records = [record for generation in self._generations for record in generation.blocks]
        return sorted(records, key=lambda record: record.step)

    @property
    def chosen(self) -> str | None:
        """What a preset chose for the latest generation, or why it was dense; None with any other method."""
        return next((each.choice.line for each in self._generations if each.choice is not None), None)

    @property
    def geometry(self) -> Geometry | None:
        """The token grid of the latest call."""
        return next((each.geometry for each in self._generations if each.geometry is not None), None)

    def memory_bytes(self) -> int:
        """Return how much method and cache remember at this moment, in bytes; nothing between generations."""
        return sum(generation.memory_bytes() for generation in self._generations)

    def peak_memory_bytes(self) -> int:
        """Return the most that method and cache remembered between two steps of the latest generation, in bytes."""
        return sum(generation.peak_memory_bytes for generation in self._generations)

    def summary(self) -> str:
        """Return a few lines on method and cache, what they are attached to and what the latest generation did."""
        names = [f"{type(each.transformer).__name__} ({each.hook.session.layers} layers)" for each in self._attachments]
        method, resting = self._attachments[0].hook.session.method, self._attachments[0].resting
        parts = [*([] if method is None else [method]), *([] if resting is None else [resting.policy])]
        lines = [f"{' with '.join(map(str, parts))} on {', '.join(names)}"]
        lines += [] if self.chosen is None else [f"latest generation: {self.chosen}"]
        facts, shares = summarize(self.stats()), block_shares(self.blocks())
        if method is not None and not facts["calls"]:
            lines.append("no attention call has come here: run the pipeline, and set no other processors after enable")
        if shares["computed"] is not None:
            said = ", ".join(f"{share:.3f} {kind}" for kind, share in shares.items())
            lines.append(f"latest generation: of all blocks {said}")
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
        """Put the stock processors back and remove the hooks; what was attached since then stays."""
        for each in self._attachments:
            if installed_hook(each.transformer) is each.hook:
                _detach(each.transformer)


def enable(
    pipe_or_transformer: Any,
    method: str | Method | None = PRESET,
    cache: str | Policy | None = None,
    **options: Any,
) -> Handle:
    """Attach `method` (an object, or a name with its options) to a pipeline's transformers, or to one transformer.

    Without a method a preset chooses it by tokens and steps, unless there are options: these are svg-ear's. Options may
    also stand in the name, as in "re-ttention:base=adaspa". A `cache` (a policy, or a text like
    "easy:threshold=0.1") lets steps or blocks rest; with one, a method of None leaves attention as it is. Attaching
    again replaces what was attached. ValueError when nothing supported is found, a name or its options are unknown, or
    diffusers caches in the transformer already.
    """
    policy = None if cache is None else _policy(cache)
    chosen = None if method is None and policy is not None and not options else _method(method, options)
    if isinstance(chosen, Preset) and policy is not None:
        chosen = replace(chosen, computed_steps=policy.computed_steps)
    pipeline = None if isinstance(pipe_or_transformer, nn.Module) else pipe_or_transformer
    attachments = [_attachment(each, chosen, policy, pipeline) for each in _transformers(pipe_or_transformer)]
    for each in attachments:
        _attach(each)
    return Handle(attachments)


def disable(pipe_or_transformer: Any) -> None:
    """Take off whatever is attached; nothing happens where nothing is."""
    for transformer in _transformers(pipe_or_transformer):
        _detach(transformer)


@contextmanager
def enabled(
    pipe_or_transformer: Any,
    method: str | Method | None = PRESET,
    cache: str | Policy | None = None,
    **options: Any,
) -> Iterator[Handle]:
    """Attach for a `with` block, also when it ends in an exception; what was attached before it is back then."""
    before = [(each, installed_hook(each), installed_cache(each)) for each in _transformers(pipe_or_transformer)]
    handle = enable(pipe_or_transformer, method, cache, **options)
    try:
        yield handle
    finally:
        handle.disable()
        for transformer, hook, resting in before:
            if hook is not None and installed_hook(transformer) is None:
                _attach(Attachment(transformer, hook, resting))


def attn_processors(transformer: Any, method: str | Method | None = PRESET, **options: Any) -> dict[str, Any]:
    """Return processors for `transformer.set_attn_processor`, and install the progress hook that they need.

    ValueError as `enable` raises it.
    """
    if transformers_of(transformer):
        raise ValueError(
            f"{type(transformer).__name__} is a pipeline; give its transformer, or call accel.enable on it"
        )
    if not hasattr(transformer, "attn_processors"):
        raise ValueError(f"{type(transformer).__name__} has no set_attn_processor; call accel.enable on it")
    hook = _attachment(transformer, _method(method, options), None, None).hook
    _detach(transformer)
    install_hook(transformer, hook)
    # Processors with weights, an IP-Adapter's, are parts of the model, which must not lose them: `enable` keeps both.
    ours = {
        f"{name}.processor": processor
        for name, module, processor in _processors(transformer, hook.session)
        if not _has_weights(module)
    }
    return {name: ours.get(name, stock) for name, stock in transformer.attn_processors.items()}


def _method(method: str | Method | None, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return from_text(method, **options)
    if not isinstance(method, Method):
        raise ValueError(f"method is {method!r}; give the name of one ({', '.join(METHODS)}) or a method object")
    if options:
        raise ValueError(f"options {', '.join(options)} only go with a method's name; set them on the object")
    return method


def _policy(cache: str | Policy) -> Policy:
    if isinstance(cache, str):
        return caches.from_text(cache)
    if not isinstance(cache, Policy):
        raise ValueError(f"cache is {cache!r}; give the name of one ({', '.join(caches.POLICIES)}) or a policy object")
    return cache


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


def _attachment(transformer: nn.Module, method: Method | None, policy: Policy | None, pipeline: Any) -> Attachment:
    adapter = adapter_for(transformer)
    if adapter.reason is not None and method is not None:
        warnings.warn(f"accel leaves {type(transformer).__name__} dense: {adapter.reason}", stacklevel=4)
    modules = adapter.modules(transformer)
    _check_processors(modules)
    if method is not None and not adapter.dispatched and any(_has_weights(module) for module in modules.values()):
        warnings.warn("accel leaves layers with an IP-Adapter dense in this model", stacklevel=4)
    session = Session(method, len(modules))
    resting = None if policy is None else Resting(policy, transformer, adapter, session.denoising)
    return Attachment(transformer, ProgressHook(session, adapter, pipeline), resting)


def _processors(transformer: Any, session: Session) -> list[tuple[str, Any, SparseAttentionProcessor]]:
    """Return name and module of each video self-attention, in the order of the layers, and a processor for it.

    Stable Diffusion 3 knows the processors of its IP-Adapter by their class: they stay.
    """
    adapter = adapter_for(transformer)
    return [
        (name, module, wrap_processor(module.processor, session, layer, adapter.dispatched))
        for layer, (name, module) in enumerate(adapter.modules(transformer).items())
        if adapter.dispatched or not _has_weights(module)
    ]


def _has_weights(module: Any) -> bool:
    """Whether the processor of an attention module is a part of the model, as an IP-Adapter's is."""
    return isinstance(module.processor, nn.Module)


def _check_processors(modules: dict[str, Any]) -> None:
    """Raise ValueError where something else was set as a processor, which diffusers takes without a word."""
    for name, module in modules.items():
        if not callable(module.processor):
            raise ValueError(f"the processor of {name} is {module.processor!r}; set one of diffusers' own")


def _attach(each: Attachment) -> None:
    _detach(each.transformer)
    if each.resting is not None:
        install_cache(each.transformer, each.resting)
    install_hook(each.transformer, each.hook)
    if each.hook.session.method is not None:
        for _, module, processor in _processors(each.transformer, each.hook.session):
            set_processor(module, processor)


def _detach(transformer: Any) -> None:
    hook = installed_hook(transformer)
    if hook is not None:
        hook.session.denoising.latest.end()  # one that was interrupted still remembers
        remove_hook(transformer)
        remove_cache(transformer)
    unwrap_processors(transformer)

"""Attach a method, a cache or both to a diffusers pipeline or transformer, and take them off again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from accel.caching import registry as caches
from accel.caching.policy import Policy
from accel.caching.resting import Resting
from accel.handle import Attachment, Handle, attach, carried, detach, has_weights, processors_of
from accel.methods.method import Method
from accel.methods.preset import Preset
from accel.methods.registry import METHODS, PRESET, from_text
from accel.models.adapters import adapter_for, transformers_of
from accel.models.progress import ProgressHook, install_hook
from accel.models.session import Session


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
    transformers = _transformers(pipe_or_transformer)
    attachments = [_attachment(each, chosen, policy, pipeline) for each in transformers]
    before = [carried(each) for each in transformers]
    try:
        for transformer, attachment in zip(transformers, attachments, strict=True):
            hook = attachment.hook
            hook.others = [other.hook.session.denoising for other in attachments if other is not attachment]
            attach(transformer, attachment)
    except BaseException:
        _restore(transformers, before)
        raise
    return Handle(attachments)


def _restore(transformers: list[Any], before: list[Attachment | None]) -> None:
    """Put back what the transformers carried, in place of what they carry now; warn where that fails too."""
    for transformer in transformers:
        detach(transformer)
    for transformer, attachment in zip(transformers, before, strict=True):
        if attachment is not None:
            try:
                attach(transformer, attachment)
            except Exception as error:  # there is another one, which is raised
                warnings.warn(f"what was attached before could not be put back: {error}", stacklevel=3)


def disable(pipe_or_transformer: Any) -> None:
    """Take off whatever is attached; nothing happens where nothing is."""
    for transformer in _transformers(pipe_or_transformer):
        detach(transformer)


@contextmanager
def enabled(
    pipe_or_transformer: Any,
    method: str | Method | None = PRESET,
    cache: str | Policy | None = None,
    **options: Any,
) -> Iterator[Handle]:
    """Attach for a `with` block, also when it ends in an exception; what was attached before it is back then."""
    before = [(each, carried(each)) for each in _transformers(pipe_or_transformer)]
    handle = enable(pipe_or_transformer, method, cache, **options)
    try:
        yield handle
    finally:
        handle.disable()
        for transformer, attachment in before:
            if attachment is not None and carried(transformer) is None:
                attach(transformer, attachment)


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
    detach(transformer)
    install_hook(transformer, hook)
    # Processors with weights, an IP-Adapter's, are parts of the model, which must not lose them: `enable` keeps both.
    ours = {
        f"{name}.processor": processor
        for name, module, processor in processors_of(transformer, hook.session)
        if not has_weights(module)
    }
    return {name: ours.get(name, stock) for name, stock in transformer.attn_processors.items()}


def _method(method: str | Method | None, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        return from_text(method, **options)
    if isinstance(method, type):
        raise ValueError(f"method is the class {method.__name__}; give one of it: {method.__name__}()")
    if not isinstance(method, Method):
        raise ValueError(f"method is {method!r}; give the name of one ({', '.join(METHODS)}) or a method object")
    if options:
        raise ValueError(f"options {', '.join(options)} only go with a method's name; set them on the object")
    return method


def _policy(cache: str | Policy) -> Policy:
    if isinstance(cache, str):
        return caches.from_text(cache)
    if isinstance(cache, type):
        raise ValueError(f"cache is the class {cache.__name__}; give one of it: {cache.__name__}()")
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
    if method is not None and not adapter.dispatched and any(has_weights(module) for module in modules.values()):
        warnings.warn("accel leaves layers with an IP-Adapter dense in this model", stacklevel=4)
    session = Session(method, len(modules), adapter.one_mask)
    resting = None if policy is None else Resting(policy, transformer, adapter, session.denoising)
    return Attachment.to(transformer, ProgressHook(session, adapter, pipeline), resting)


def _check_processors(modules: dict[str, Any]) -> None:
    """Raise ValueError where something else was set as a processor, which diffusers takes without a word."""
    for name, module in modules.items():
        if not callable(module.processor):
            raise ValueError(f"the processor of {name} is {module.processor!r}; set one of diffusers' own")

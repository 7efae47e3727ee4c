"""How a policy sits on a transformer: a hook of diffusers' on its root and on what it looks at, and in its blocks."""

from __future__ import annotations

from typing import Any

from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

from accel.caching.blocks import let_rest, never_rest, refuse_copies
from accel.caching.elastic import Narrowed, first_layer, last_layer
from accel.caching.resting import Resting
from accel.models.compiling import between_graphs

HOOK = "accel_cache"


class _CacheHook(ModelHook):
    """One of the hooks of a policy; `wrapper` is the `forward` that diffusers makes of it."""

    wrapper: Any = None

    __reduce_ex__ = refuse_copies


class ForwardHook(_CacheHook):
    """On the root of the transformer, inside the hook that knows the step."""

    def __init__(self, resting: Resting):
        super().__init__()
        self.resting = resting

    @between_graphs
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer, or let it rest."""
        stock: Any = self.fn_ref.original_forward
        return self.resting.forward(module, stock, args, kwargs)


class TimeHook(_CacheHook):
    """On the module that embeds the timestep."""

    def __init__(self, resting: Resting):
        super().__init__()
        self.resting = resting

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Note the embedding of the call that runs."""
        self.resting.note_time(output)
        return output


class LinearHook(_CacheHook):
    """On the first or last layer of a block's MLP."""

    def __init__(self, resting: Resting, narrow: Narrowed):
        super().__init__()
        self.resting, self.narrow = resting, narrow

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, or the part of it that is asked for."""
        stock: Any = self.fn_ref.original_forward
        width = self.resting.width
        return stock(*args, **kwargs) if width is None else self.narrow(module, args[0], width)


def install_cache(transformer: nn.Module, resting: Resting) -> None:
    """Put the hooks on a transformer that carries none of ours."""
    adapter = resting.adapter
    hooks: list[tuple[nn.Module, _CacheHook]] = [(transformer, ForwardHook(resting))]
    if resting.units is not None and adapter.blocks is not None:
        for index, block in enumerate(adapter.blocks(transformer)):
            let_rest(block, resting, index)
            if resting.policy.narrows and adapter.mlp is not None:
                for layer, narrow in zip(adapter.mlp(block), (first_layer, last_layer), strict=True):
                    hooks.append((layer, LinearHook(resting, narrow)))
    if resting.policy.by_time and adapter.time_embedding is not None:
        hooks.append((adapter.time_embedding(transformer), TimeHook(resting)))
    for module, hook in hooks:
        _register(module, hook)
    resting.weights.put(transformer)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()


def installed_cache(transformer: nn.Module) -> Resting | None:
    """Return the policy at work on a transformer, if there is one."""
    registry: Any = getattr(transformer, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(HOOK)
    return None if hook is None else hook.resting


def remove_cache(transformer: nn.Module) -> None:
    """Take the hooks off again, if there are any."""
    resting = installed_cache(transformer)
    if resting is not None:
        resting.weights.give_back()
    for module in transformer.modules():
        _unregister(module)
        never_rest(module)
    registry: Any = getattr(transformer, "_diffusers_hook", None)
    if registry is not None:
        registry.invalidate_child_registries_cache()


def _register(module: Any, hook: _CacheHook) -> None:
    """Put a hook on a module, inside what accelerate wraps around its `forward` instead of around that.

    Offloading of whole models takes its own wrapper off after every generation, and all that was put around it since.
    """
    registry = HookRegistry.check_if_exists_or_initialize(module)
    offloaded = getattr(module, "_old_forward", None)
    if offloaded is None:
        registry.register_hook(hook, HOOK)
        hook.wrapper = module.forward
        return
    outer, module.forward = module.forward, offloaded
    try:
        registry.register_hook(hook, HOOK)
        hook.wrapper = module._old_forward = module.forward
    finally:
        module.forward = outer
    # What diffusers put there before accelerate is inside ours, what came after it is around accelerate's.
    inner, inside = offloaded, []
    while (inner := getattr(inner, "__wrapped__", None)) is not None:
        inside.append(inner)
    others = [ref.original_forward or ref.forward for ref in registry._fn_refs[:-1]]
    place = sum(any(other is each for each in inside) for other in others)
    for order in (registry._hook_order, registry._fn_refs):
        order.insert(place, order.pop())


def _unregister(module: Any) -> None:
    """Take the hook off a module, and leave what accelerate and others put around it since."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    hook: Any = None if registry is None else registry.get_hook(HOOK)
    if registry is None or hook is None:
        return
    if getattr(module, "_old_forward", None) is not hook.wrapper:
        registry.remove_hook(HOOK, recurse=False)
        return
    module._old_forward = hook.fn_ref.original_forward or hook.fn_ref.forward
    place = registry._hook_order.index(HOOK)
    del registry.hooks[HOOK], registry._hook_order[place], registry._fn_refs[place]

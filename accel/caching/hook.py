"""How a policy sits on a transformer: one hook of diffusers' on its root, and one on each block where blocks rest."""

from __future__ import annotations

from typing import Any

from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

from accel.caching.resting import Resting

HOOK = "accel_cache"


class ForwardHook(ModelHook):
    """On the root of the transformer, inside the hook that knows the step."""

    def __init__(self, resting: Resting):
        super().__init__()
        self.resting = resting

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the transformer, or let it rest."""
        stock: Any = self.fn_ref.original_forward
        return self.resting.forward(module, stock, args, kwargs)


class BlockHook(ModelHook):
    """On one block."""

    def __init__(self, resting: Resting, index: int):
        super().__init__()
        self.resting, self.index = resting, index

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or let it rest."""
        stock: Any = self.fn_ref.original_forward
        return self.resting.block(self.index, stock, args, kwargs)


def install_cache(transformer: nn.Module, resting: Resting) -> None:
    """Put the hooks on a transformer that carries none of ours."""
    assert resting.adapter.blocks is not None
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(ForwardHook(resting), HOOK)
    if resting.units is not None:
        for index, block in enumerate(resting.adapter.blocks(transformer)):
            HookRegistry.check_if_exists_or_initialize(block).register_hook(BlockHook(resting, index), HOOK)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()


def installed_cache(transformer: nn.Module) -> Resting | None:
    """Return the policy at work on a transformer, if there is one."""
    registry: Any = getattr(transformer, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(HOOK)
    return None if hook is None else hook.resting


def remove_cache(transformer: nn.Module) -> None:
    """Take the hooks off again."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.remove_hook(HOOK, recurse=True)
    registry.invalidate_child_registries_cache()

"""How a block rests: the call of it is decided about, outside its `forward` and what `torch.compile` made of that."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NoReturn

from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import nn

from accel.caching.resting import Resting
from accel.models.compiling import between_graphs, outside_graphs

PLACE = "_accel_rests"
STOCK = "_accel_stock"
OFFLOADING = "group_offloading"  # diffusers' name of its hook


def let_rest(block: nn.Module, resting: Resting, index: int) -> None:
    """Have the calls of a block decided about from now on, by what is asked about all blocks."""
    vars(block)[PLACE] = resting, index
    if not any(STOCK in vars(kind) for kind in type(block).__mro__):  # FSDP may have made a class of ours its own
        block.__class__ = _kind(type(block))


def never_rest(module: nn.Module) -> None:
    """Undo that, if the module is such a block."""
    vars(module).pop(PLACE, None)
    stock = vars(type(module)).get(STOCK)
    if stock is not None:
        module.__class__ = stock


def refuse_copies(module: Any, protocol: Any) -> NoReturn:
    """Raise TypeError: a copy would run the blocks, or ask the policy, of the transformer that it was made from."""
    raise TypeError("a transformer with a cache attached can be neither copied nor pickled; call accel.disable first")


@cache
def _kind(stock: type[nn.Module]) -> type[nn.Module]:
    """Return the class of blocks of a kind that may rest: one for all of them, as compiled code is kept by class.

    What looks at blocks by their class finds the same name, and what diffusers knows about them.
    """

    @between_graphs
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if PLACE not in vars(self):  # and its class is one that somebody has made of ours
            return stock.__call__(self, *args, **kwargs)
        resting, index = vars(self)[PLACE]
        rested = resting.enter(index, args, kwargs)
        if rested is not None:
            _offload(self)
            return rested
        _onload(self)
        output = stock.__call__(self, *args, **kwargs)
        resting.leave(index, output)
        return output

    members = {"__call__": call, "__reduce_ex__": refuse_copies, STOCK: stock}
    said = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    made = type(stock.__name__, (stock,), members | said)
    try:
        known = TransformerBlockRegistry.get(stock)
    except ValueError:  # diffusers knows the blocks of its caches and guiders only
        return made
    TransformerBlockRegistry.register(made, copy.copy(known))
    return made


@outside_graphs
def _onload(block: Any) -> None:
    """Bring weights of a block that runs to its device where diffusers leaves that to a block before it, which rested.

    As within a group of several blocks.
    """
    group = _group(block)
    if group is None or group.onload_leader in (None, block):
        return
    if any(part.device == group.offload_device for part in block.parameters()):
        group.onload_()


@outside_graphs
def _offload(block: Any) -> None:
    """Take weights off the device again where diffusers leaves that to a block which rests.

    As to the last of a group of several blocks, or to one whose weights are fetched ahead.
    """
    group = _group(block)
    if group is None or group.offload_leader is not block:
        return
    if any(part.device.type == group.onload_device.type for part in block.parameters()):
        group.offload_()


def _group(block: Any) -> Any:
    registry = vars(block).get("_diffusers_hook")
    hook = None if registry is None else registry.get_hook(OFFLOADING)
    return None if hook is None else hook.group

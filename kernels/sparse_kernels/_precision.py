"""Functions that compute in the types they choose themselves, whatever torch.autocast would make of their products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def without_autocast(function: Function) -> Function:
    """Return the function such that autocast is off inside, on the device of its first argument, a tensor."""

    @functools.wraps(function)
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = x.device.type
        # There are devices without autocast, as meta, and whoever has it off needs no context.
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(x, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(x, *args, **kwargs)

    return cast(Function, run)

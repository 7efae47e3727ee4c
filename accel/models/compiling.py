"""What `torch.compile` leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_graphs(function: Function) -> Function:
    """Return the function or method such that a compiled graph ends before its calls, and another begins after them.

    For what branches on tensors or keeps what it saw: traced, it would be compiled anew for every layer and step.
    """
    return cast(Function, torch.compiler.disable(function))


def between_graphs(function: Function) -> Function:
    """Return the function or method such that it runs outside graphs, and what it calls in graphs of its own.

    For what decides whether a block runs: traced with it, a block would be compiled anew for each layer and decision.
    """
    return cast(Function, torch.compiler.disable(function, recursive=False))

"""A step of training that is made as a whole or leaves a network as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def whole_step(network: nn.Module) -> Iterator[None]:
    """Put a network's buffers back if the block raises: a forward pass has moved the statistics of its norms."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    except Exception:
        with torch.no_grad():
            for buffer, old in zip(network.buffers(), before, strict=True):
                buffer.copy_(old)
        raise


def descend(
    loss: Float[Tensor, ""],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    most_gradient: float,
    number: int,
) -> None:
    """Let the optimizer make step `number` down the gradient of a loss, clipped to the norm `most_gradient`.

    ValueError, before any weight changes, if the loss or that norm is not finite.
    """
    _check("loss", loss, number)
    optimizer.zero_grad()
    loss.backward()
    _check("norm of the gradient", nn.utils.clip_grad_norm_(network.parameters(), most_gradient), number)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()


def _check(what: str, value: Tensor, number: int) -> None:
    if not value.isfinite():
        raise ValueError(f"the {what} is {value.item()} at step {number}; start again at a lower learning rate")

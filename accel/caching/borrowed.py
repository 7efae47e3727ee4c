"""Weights that a transformer has for as long as a policy is attached."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from accel.errors import InputError


class BorrowedWeights:
    """Weights by their names in a transformer; InputError if one is not there, or has another shape.

    They are copied into its parameters, whose own values are kept beside them until they are given back.
    """

    def __init__(self, weights: Mapping[str, Tensor], transformer: nn.Module):
        parameters = dict(transformer.named_parameters()) if weights else {}
        name = type(transformer).__name__
        for key, weight in weights.items():
            there = parameters.get(key)
            if there is None or there.shape != weight.shape:
                has = "has none of that name" if there is None else f"has {tuple(there.shape)}"
                raise InputError(
                    f"a tuned weight {key} is {tuple(weight.shape)}, and this {name} {has}; "
                    "give the transformer that was tuned"
                )
            if there.is_meta or not there.is_floating_point():
                raise InputError(
                    f"a tuned weight {key} cannot be put into this {name}, whose own is quantised or offloaded; "
                    "load it plain, and attach before offloading"
                )
        self._weights = weights
        self._own: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def put(self, transformer: nn.Module) -> None:
        """Put them in."""
        parameters = dict(transformer.named_parameters()) if self._weights else {}
        # A handle may outlive the transformer.
        weakref.finalize(transformer, self._own.clear).atexit = False
        for key, weight in self._weights.items():
            self._own.append((parameters[key], parameters[key].clone()))
            parameters[key].copy_(weight)

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the transformer's own values back."""
        for parameter, own in self._own:
            parameter.copy_(own)
        self._own.clear()

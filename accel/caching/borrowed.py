"""Weights that a transformer has for as long as a policy is attached."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from accel.errors import InputError
from accel.models.hooks import hooks_of


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
        if weights and on_disk(transformer):
            raise InputError(
                f"tuned weights cannot be put into this {name}, whose own are offloaded to files; "
                "offload to memory, or leave the offloading out"
            )
        self._weights, self._name = weights, name
        self._own: list[tuple[Tensor, Tensor]] = []
        self._transformer: Callable[[], nn.Module | None] = weakref.ref(transformer)

    @torch.no_grad()
    def put(self, transformer: nn.Module) -> None:
        """Put them in; after an error none are there."""
        parameters = dict(transformer.named_parameters()) if self._weights else {}
        # A handle may outlive the transformer.
        weakref.finalize(transformer, self._own.clear).atexit = False
        try:
            for key, weight in self._weights.items():
                self._own.append((parameters[key], parameters[key].clone()))
                parameters[key].copy_(weight)
        except BaseException:
            for parameter, own in self._own:
                parameter.copy_(own)
            self._own.clear()
            raise

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the transformer's own values back; what was added to it meanwhile, as by fusing a LoRA, stays."""
        transformer = self._transformer()
        in_files = transformer is not None and on_disk(transformer)
        if self._own and in_files:
            warnings.warn(
                f"this {self._name} was offloaded to files while it had tuned weights, which the files keep; "
                "load it anew to have its own",
                stacklevel=2,
            )
        for (parameter, own), tuned in zip(self._own, self._weights.values(), strict=False):
            since = None
            if not (parameter.is_meta or in_files):
                put = tuned.to(own.dtype).to(parameter)  # rounded as it was when it was put in
                since = parameter.float() - put.float()
            parameter.copy_(own if since is None or not since.any() else own.to(since) + since)
        self._own.clear()


def on_disk(transformer: nn.Module) -> bool:
    """Whether diffusers' group offloading keeps weights in files: what is written to the parameters is lost there."""
    groups = (getattr(hook, "group", None) for _, hook in hooks_of(transformer.modules()))
    return any(getattr(group, "offload_to_disk_path", None) is not None for group in groups)

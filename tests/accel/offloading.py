"""Diffusers' group offloading from the CPU to the CPU, where nothing would move, made to matter."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

Kept = list[tuple[Tensor, Tensor]]


def spoil_what_is_offloaded(
    monkeypatch: pytest.MonkeyPatch, spared: Collection[nn.Module] = ()
) -> dict[ModuleGroup, Kept]:
    """Let weights be NaN for as long as diffusers has their group offloaded, and return the groups that are.

    Those of modules that are `spared` stay as they are.
    """
    kept: dict[ModuleGroup, Kept] = {}
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_

    def onloaded(group: ModuleGroup) -> None:
        for tensor, values in kept.pop(group, []):
            tensor.data.copy_(values)
        onload(group)

    def offloaded(group: ModuleGroup) -> None:
        offload(group)
        if group in kept or any(module in spared for module in group.modules):
            return
        parts = [part for module in group.modules for part in (*module.parameters(), *module.buffers())]
        tensors = {id(part): part for part in (*parts, *group.parameters, *group.buffers) if part.is_floating_point()}
        kept[group] = [(tensor, tensor.data.clone()) for tensor in tensors.values()]
        for tensor in tensors.values():
            tensor.data.fill_(torch.nan)

    monkeypatch.setattr(ModuleGroup, "onload_", onloaded)
    monkeypatch.setattr(ModuleGroup, "offload_", offloaded)
    return kept

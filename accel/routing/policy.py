"""Routers at work: each block of each sample is skipped, repeats what it added, or runs as wide as its router says."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel.caching.borrowed import BorrowedWeights
from accel.caching.policy import (
    DIGITS,
    BlockCall,
    Compute,
    Decision,
    Memory,
    Narrow,
    Policy,
    Reuse,
    Skip,
    check_steps,
    step_count,
)
from accel.errors import InputError
from accel.models.adapters import adapter_for, transformers_of
from accel.models.adapters.adapter import Adapter
from accel.naming import check_least
from accel.routing.folder import fingerprint, read_routers
from accel.routing.router import Routers

COPYING = threading.Lock()  # two threads may want the same routers on one device
EMBEDDED = Path(__file__).parents[1] / "embedded" / "shapes-wan" / "routers"


@dataclass
class Reuses:
    """How often in a row blocks have repeated what they added, and what their rates have come to since they ran."""

    used: int = 0
    owed: float = 0.0


@dataclass(frozen=True)
class Routed(Policy):
    """Follow `routers`, given as such or by the `path` of their folder, in three bands of the gate's probability.

    Without either it follows those of the embedded model, which fit no other. Below `threshold` a block is skipped;
    from there to `margin` above it, it adds what it added when it last ran, at most `most_reuses` times in a row
    (published: margin 0.1 and 5; the release has 0.015 and 10); above, it runs, with `widths` as much of its MLP as
    the router finds enough. In the first share `reuse_after` of the steps that run (the release: half) nothing is
    reused. A margin of 0 is no reuse.

    A router that has learnt when to reuse (`RoutersConfig.rest`) decides for all blocks at once: its probability is the
    rate at which they have to run, and they do so whenever rates have come to twice the `threshold`; in between they
    repeat what they added, at most `most_reuses` times in a row. `margin` and `reuse_after` are not for it.

    Weights of the transformer that were tuned with the routers are in it while the policy is attached. E-DiT, arXiv
    2602.13993. Waits for the device once a block, or once a call where all are decided about at once.
    """

    warmup: float = 0
    path: str | None = None
    threshold: float = 0.5
    margin: float = 0.0
    most_reuses: int = 5
    reuse_after: float = 0.5
    widths: bool = True
    routers: Routers | None = field(default=None, repr=False)
    backbone: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    by_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "margin", "most_reuses")
        check_steps(self, "reuse_after")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {self.threshold}")
        if self.routers is None:
            routers, backbone = read_routers(EMBEDDED if self.path is None else Path(self.path).expanduser())
            object.__setattr__(self, "routers", routers)
            object.__setattr__(self, "backbone", backbone)

    def check(self, transformer: nn.Module, adapter: Adapter) -> None:
        """Raise InputError for routers of another class, depth or number of channels."""
        assert self.routers is not None
        if adapter.blocks is None or adapter.channels is None or adapter.time_embedding is None:
            raise InputError(f"routers do not fit {type(transformer).__name__}, they are for Wan; take another cache")
        config = self.routers.config
        there = {"class": type(transformer).__name__, "blocks": len(adapter.blocks(transformer))}
        there["channels"] = adapter.channels(transformer)
        made_for = {"class": config.model, "blocks": config.depth, "channels": config.channels}
        if made_for != there:
            raise InputError(
                f"the routers are of {_described(made_for)}, and this is {_described(there)}: "
                "train some for it with accel train-router"
            )

    def units(self, depth: int) -> tuple[range, ...]:
        """Return the blocks, each by itself, or all as one for a router that has learnt when to reuse."""
        if self._taught_reuse:
            return (range(depth),)
        return tuple(range(index, index + 1) for index in range(depth))

    @property
    def narrows(self) -> bool:
        """Whether widths are on, and the routers know of any."""
        return self.widths and self.routers is not None and len(self.routers.config.widths) > 1

    @property
    def reuses(self) -> bool:
        """Whether there is a band in which blocks repeat what they added."""
        return (self.margin > 0 or self._taught_reuse) and self.most_reuses > 0

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that were tuned with the routers."""
        return self.backbone

    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Return what the block's router finds enough for this sample at this timestep."""
        if self.warming(call.progress):
            return Compute()
        assert call.time is not None
        routers = self._on(call.x.device)
        probability, width = routers.read(call.blocks[0], call.x, call.time.to(call.x.device))
        if self._taught_reuse:
            return self._by_rate(probability, memory)
        if probability < self.threshold:
            return Skip()
        if self.reuses and probability <= self.threshold + self.margin and self._may_reuse(call, memory):
            memory.own(Reuses).used += 1
            return Reuse(self.order)
        memory.own(Reuses).used = 0
        return Narrow(width) if self.narrows and width < 1 else Compute()

    def digest(self) -> str | None:
        """Return what tells the weights of routers and backbone from others, whatever their folder."""
        assert self.routers is not None
        return fingerprint(self.routers, self.backbone)[:DIGITS]

    @cached_property
    def _copies(self) -> dict[torch.device, Routers]:
        """The routers on devices where they are not themselves."""
        return {}

    def _on(self, device: torch.device) -> Routers:
        """Return the routers on a device: a copy, for another device may use them on another thread."""
        assert self.routers is not None
        if self.routers.device == device:
            return self.routers
        with COPYING:
            if device not in self._copies:
                self._copies[device] = copy.deepcopy(self.routers).to(device)
            return self._copies[device]

    @property
    def _taught_reuse(self) -> bool:
        return self.routers is not None and self.routers.config.rest == "reuse"

    def _by_rate(self, rate: float, memory: Memory) -> Decision:
        """Spread as many computed steps as the rates ask for: what is left over after one counts for the next."""
        reuses, due = memory.own(Reuses), 2 * self.threshold
        if not memory.history().steps:
            return Compute()
        reuses.owed += rate
        if reuses.owed < due and reuses.used < self.most_reuses:
            reuses.used += 1
            return Reuse(self.order)
        reuses.used, reuses.owed = 0, min(max(0.0, reuses.owed - due), due)
        return Compute()

    def _may_reuse(self, call: BlockCall, memory: Memory) -> bool:
        early = call.progress.number < step_count(self.reuse_after, call.progress.runs)
        return not early and bool(memory.history().steps) and memory.own(Reuses).used < self.most_reuses


def load_routers(pipe_or_transformer: Any, path: str | Path | None = None, **options: Any) -> Routed:
    """Return the policy of a folder of routers, for `accel.enable(pipe, cache=...)`; options are those of `Routed`.

    Without a folder they are those of the embedded model. Weights that were tuned with the routers are read, and put
    into the transformer by `enable`; `disable` gives it its own back. InputError for a folder that holds none, and for
    routers of another model.
    """
    policy = Routed(path=None if path is None else str(path), **options)
    is_transformer = isinstance(pipe_or_transformer, nn.Module)
    transformers = [pipe_or_transformer] if is_transformer else transformers_of(pipe_or_transformer)
    for transformer in transformers:
        policy.check(transformer, adapter_for(transformer))
        BorrowedWeights(policy.weights, transformer)
    return policy


def _described(model: dict[str, Any]) -> str:
    return f"a {model['class']} with {model['blocks']} blocks of {model['channels']} channels"

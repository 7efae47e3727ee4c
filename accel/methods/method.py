"""What a method is, and what all of them have."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.plan import Plan
from accel.attention.schedule import Phase, phase
from accel.naming import check_kinds, check_least

Own = TypeVar("Own", bound="Scheduled")


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of published hyper-parameters that plans each attention call."""

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Decide how the call is computed; `memory` is this layer's and branch's, fresh for each generation."""
        ...


@dataclass(frozen=True)
class Choice:
    """The method of one generation, None for dense attention, and a line that says what was chosen or why not."""

    method: Method | None
    line: str


@runtime_checkable
class Chooser(Method, Protocol):
    """A method that stands for others: it chooses one when steps and tokens of a generation are known."""

    def choose(self, call: AttentionCall) -> Choice:
        """Return what all calls of a generation are planned by, from its first one."""
        ...


@dataclass(frozen=True)
class Scheduled(ABC):
    """What every method of a paper has: density (None: its own rule), and a dense warm-up of steps and layers."""

    density: float | None = None
    dense_steps: float = 0.0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        check_shares(self, "dense_steps")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density}")
        check_least(self, 0, "dense_layers")

    @abstractmethod
    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Decide how the call is computed, as `Method` says."""

    def phase(self, call: AttentionCall) -> Phase:
        """Return where a call stands: in the dense warm-up, in its last step, or after it."""
        return phase(call, self.dense_steps, self.dense_layers)

    def without_dense_steps(self: Own) -> Own:
        """Return the same method without warm-up steps."""
        return dataclasses.replace(self, dense_steps=0.0)


def check_shares(method: Any, *names: str) -> None:
    """Raise ValueError unless every named field lies between 0 and 1."""
    for name in names:
        value = getattr(method, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def check_block(block: int) -> None:
    """Raise ValueError unless the kernels have blocks of that size."""
    if block < 16 or block % 16:
        raise ValueError(f"block must be a multiple of 16, got {block}")


def check_tile(tile: tuple[int, int, int] | None) -> None:
    """Raise ValueError unless a tile has one frame, row and column at least."""
    if tile is not None and min(tile) < 1:
        raise ValueError(f"tile must be three numbers of 1 or more, got {tile}")

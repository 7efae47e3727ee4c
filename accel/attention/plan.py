"""What a method decides for one call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from accel.attention.call import AttentionCall
from sparse_kernels import BlockMap, Summaries


@dataclass(frozen=True)
class Dense:
    """Attend to all keys, as `call.dense` does."""


@dataclass(frozen=True)
class Computed:
    """The method needed the full attention itself (a refresh step): here is its output."""

    out: Float[Tensor, "b h s d"]


@runtime_checkable
class Correction(Protocol):
    """What is done about the keys that were not computed."""

    def __call__(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"], lse: Float[Tensor, "b h s"]
    ) -> Float[Tensor, "b h s d"]:
        """Return the corrected output; `lse` is that of the kept keys, in the callers' row order."""
        ...


@dataclass(frozen=True)
class Sparse:
    """Visit the blocks of `block_map`, after bringing queries and keys in their orders.

    Heads of every kind share the one launch: a head that is skipped has empty rows, a full head all blocks, and
    each head has its own orders. Blocks that are not visited answer through their `summaries`, where there are any.
    """

    block_map: BlockMap
    q_order: Int[Tensor, "b1 h1 s"] | None = None
    kv_order: Int[Tensor, "b1 h1 s"] | None = None
    correction: Correction | None = None
    summaries: Summaries | None = None

    @cached_property
    def share(self) -> Float[Tensor, ""]:
        """The block map's density, on its device: who reads it waits for all that was asked of the device before."""
        return self.block_map.share()

    @property
    def density(self) -> float:
        """The block map's density, read back from the device."""
        return self.share.item()


Plan = Dense | Computed | Sparse

"""XAttention (arXiv 2503.16428): the sums of antidiagonals tell which blocks matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.masks.kept import keep_rest
from accel.attention.masks.selection import select_blocks
from accel.attention.orders.grid import tiles
from accel.attention.plan import Dense, Plan, Sparse
from accel.methods.method import Scheduled, check_block, check_tile
from accel.naming import check_least
from sparse_kernels import BlockMap, antidiagonal_scores
from sparse_kernels.block_map import uniform_offsets


@dataclass
class XAttentionState:
    """The latest mask, and the step it was made in."""

    plan: Sparse | None = None
    estimated: int = 0


@dataclass(frozen=True)
class XAttention(Scheduled):
    """Keep the key blocks that cover `threshold` of a query block's estimated mass; published for video: 0.9, stride 8.

    The estimate sums every `stride`-th antidiagonal of a block; padding at the end of the sequence takes no mass.
    Published: 5 dense steps of 50, a new mask in each step (`every`). A `density` keeps that share of the key
    blocks of each query block instead, so that methods can be compared at one density. `keep_first` keeps key
    block 0 as well; the published code does so by the way it fills its index lists, the paper does not say it and
    the first block of a video is no sink by nature, so it is off. Among blocks of a `density` it counts.
    `tile` groups tokens by (frames, rows, columns) before they are cut into blocks, as for AdaSpa; published: None.
    """

    dense_steps: float = 0.1
    block: int = 128
    stride: int = 8
    threshold: float = 0.9
    every: int = 1
    keep_first: bool = False
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)
        check_tile(self.tile)
        check_least(self, 1, "every")
        if self.stride < 1 or self.block % self.stride:
            raise ValueError(f"stride must divide block {self.block}, got {self.stride}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {self.threshold}")

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, else the mask of this step or of the last one that made one."""
        if self.phase(call) != "sparse":
            return Dense()
        state = memory.of(XAttentionState)
        if state.plan is None or call.progress.step - state.estimated >= self.every:
            state.plan, state.estimated = self._estimate(call, state.plan), call.progress.step
        return state.plan

    def _estimate(self, call: AttentionCall, before: Sparse | None) -> Sparse:
        shared = self._order(call) if before is None else before.q_order
        q, k = (x if shared is None else x[:, :, shared[0, 0]] for x in (call.q, call.k))
        scores = antidiagonal_scores(q, k, self.block, self.stride, scale=call.scale)
        offsets = uniform_offsets(call.geometry.tokens, self.block, call.q.device)
        # Every order leaves the rest where it is, so its blocks are those of the native order.
        mask = keep_rest(self._select(scores), call.geometry, offsets, offsets)
        longest = None if self.density is None or call.geometry.has_rest else self._kept(scores.shape[-1])
        return Sparse(BlockMap.from_dense(mask, offsets, offsets, self.block, longest), shared, shared)

    def _order(self, call: AttentionCall) -> Int[Tensor, "1 1 s"] | None:
        return None if self.tile is None else tiles(call.geometry, self.tile).to(call.q.device)[None, None]

    def _kept(self, blocks: int) -> int:
        """Return how many key blocks of so many a density keeps."""
        assert self.density is not None
        return max(1, round(self.density * blocks))

    def _select(self, scores: Float[Tensor, "b h nq nk"]) -> Bool[Tensor, "b h nq nk"]:
        first = torch.arange(scores.shape[-1], device=scores.device) == 0
        if self.density is None:
            kept = select_blocks(scores, top_p=self.threshold)
            return kept | first if self.keep_first else kept
        if self.keep_first:
            scores = scores.masked_fill(first, torch.inf)
        return select_blocks(scores, top_k=self._kept(scores.shape[-1]))

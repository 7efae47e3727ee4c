"""AdaSpa (arXiv 2502.21079): exact block mass at a few steps, the mask kept in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.execute import full_attention
from accel.attention.masks.kept import keep_rest
from accel.attention.masks.selection import select_blocks
from accel.attention.orders.grid import tiles
from accel.attention.plan import Computed, Dense, Plan, Sparse
from accel.methods.method import Scheduled, check_block, check_tile
from sparse_kernels import BlockMap, block_mass
from sparse_kernels.block_map import uniform_offsets


@dataclass
class AdaSpaState:
    """The LSE of the first search, the mask of the latest one, and the step of that."""

    lse: Float[Tensor, "b h s"] | None = None
    plan: Sparse | None = None
    searched: int = 0


@dataclass(frozen=True)
class AdaSpa(Scheduled):
    """Keep the heaviest key blocks of each query block; published: density 0.2, block 64, searches at 10 and 30 of 50.

    `dense_steps` is the share of leading dense steps; the last of them carries the first search, whose LSE
    later searches at the shares `refresh` reuse. `tile` groups tokens by (frames, rows, columns) before they are
    cut into blocks, which the paper does not do; None keeps the frame-major order.
    """

    density: float = 0.2
    dense_steps: float = 0.2
    block: int = 64
    refresh: tuple[float, ...] = (0.6,)
    head_adaptive: bool = True
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)
        check_tile(self.tile)
        if not all(0 <= share <= 1 for share in self.refresh):
            raise ValueError(f"refresh must hold shares between 0 and 1, got {self.refresh}")

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, the search's own output at its first step, else the cached mask."""
        if self.phase(call) == "dense":
            return Dense()
        state = memory.of(AdaSpaState)
        if state.lse is None or state.plan is None:
            out, state.lse = full_attention(call, self.block)
            state.plan, state.searched = self._search(call, state.lse), call.progress.step
            return Computed(out)
        if self._refreshes(call, state.searched):
            state.plan, state.searched = self._search(call, state.lse), call.progress.step
        return state.plan

    def _refreshes(self, call: AttentionCall, searched: int) -> bool:
        """Whether a refresh share was passed since the last search (a step cache may have swallowed the very step)."""
        steps = [int(share * call.progress.steps) for share in self.refresh]
        return any(searched < step <= call.progress.step for step in steps)

    def _search(self, call: AttentionCall, lse: Float[Tensor, "b h s"]) -> Sparse:
        order = None if self.tile is None else tiles(call.geometry, self.tile).to(call.q.device)[None, None]
        offsets = uniform_offsets(call.geometry.tokens, self.block, call.q.device)
        mass = block_mass(call.q, call.k, lse, offsets, offsets, q_order=order, kv_order=order, scale=call.scale)
        # Every order leaves the rest where it is, so its blocks are those of the native order.
        mask = keep_rest(self._select(call, mass), call.geometry, offsets, offsets)
        # Of 40 heads over 75,600 tokens lists with room for all blocks are 220 megabytes in each layer and branch.
        longest = None if call.geometry.has_rest else math.ceil((self.density + self._moved) * mass.shape[-1])
        return Sparse(BlockMap.from_dense(mask, offsets, offsets, self.block, longest), order, order)

    @property
    def _moved(self) -> float:
        """Half the density moves from the best to the worst heads; never more than these can take."""
        return min(self.density / 2, 1 - self.density) if self.head_adaptive else 0.0

    def _select(self, call: AttentionCall, mass: Float[Tensor, "b h nq nk"]) -> Tensor:
        blocks = mass.shape[-1]
        budget = torch.full((*mass.shape[:2], 1, 1), self.density, device=mass.device)
        if self.head_adaptive:
            budget = budget + self._head_direction(call, mass) * self._moved
        return select_blocks(mass, top_k=(budget * blocks).round().clamp(min=1).long())

    def _head_direction(self, call: AttentionCall, mass: Float[Tensor, "b h nq nk"]) -> Float[Tensor, "b h 1 1"]:
        """Return -1 for the n heads of highest recall, 1 for the n of lowest, n = heads with recall above 0.8."""
        kept = select_blocks(mass, top_k=max(1, round(self.density * mass.shape[-1])))
        recall = call.all_heads((mass * kept).sum((-1, -2)) / mass.sum((-1, -2)))
        heads = recall.shape[1]
        # The paper leaves open what happens above half of the heads: best and worst must not overlap.
        count = (recall > 0.8).sum(-1, keepdim=True).clamp(max=heads // 2)
        rank = recall.argsort(-1, descending=True).argsort(-1)
        return call.own_heads((rank >= heads - count).float() - (rank < count).float())[..., None, None]

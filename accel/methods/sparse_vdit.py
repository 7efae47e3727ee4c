"""Sparse-vDiT (arXiv 2506.03065): each head gets the pattern that costs it least, found by a search."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.execute import execute
from accel.attention.masks.head_modes import MODES, head_mode_plan, rank_columns
from accel.attention.masks.pattern_table import PatternTable
from accel.attention.plan import Computed, Dense, Plan, Sparse
from accel.methods.method import Scheduled, check_block

CANDIDATES = MODES[1:]
SAMPLE = 8  # every eighth query block is enough to tell the patterns apart


@dataclass
class SparseVDiTState:
    """The plan of the heads' modes; of a table also the modes and each head's ranking of columns."""

    plan: Sparse | None = None
    modes: list[str] | None = None
    columns: Int[Tensor, "b h s"] | None = None
    said: bool = False


@dataclass(frozen=True)
class SparseVDiT(Scheduled):
    """Pick full, skip, diagonal, multi-diagonal or stripe for each head by error + penalty * density.

    A head stays full where that pattern errs more than `tolerance`. The error is the squared error of the head's output
    over that output's square (the paper's scale is not stated), so that skip, which errs by 1, is chosen from a
    tolerance of 1 on; published: penalty (lambda) 0.5, tolerance (epsilon) 1. With a `table` from
    `accel.search.search_patterns` the choice is the offline one of the paper; without, or where the table is of another
    size, which is said, each generation searches for itself at its last dense step. `first_frame` (ours) keeps all
    pairs of the first latent frame in every pattern, which is narrower for it, unless they would take more than half of
    the density.
    """

    density: float = 0.35
    dense_steps: float = 0.25
    block: int = 64
    penalty: float = 0.5
    tolerance: float = 0.15
    first_frame: bool = True
    table: PatternTable | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, else the layer's heads in their patterns."""
        phase = self.phase(call)
        state = memory.of(SparseVDiTState)
        if self.table is not None and self.table.fits(call):
            return self._from_table(call, state) if phase == "sparse" else Dense()
        if self.table is not None and not state.said:
            state.said = True
            self._say_unfit(call)
        if phase == "dense":
            return Dense()
        if state.plan is not None:
            return state.plan
        out = call.dense()
        state.plan = self.head_plan(call, *self.choose_patterns(call, out))
        return Computed(out)

    def _from_table(self, call: AttentionCall, state: SparseVDiTState) -> Sparse:
        assert self.table is not None
        first, heads = 0 if call.share is None else call.share.first, call.q.shape[1]
        modes = self.table.modes(call.progress, call.layer)[first : first + heads]
        if state.plan is None or state.modes != modes:
            if state.columns is None:
                state.columns = self._rank_columns(call)
            state.modes, state.plan = modes, self.head_plan(call, [modes], state.columns)
        return state.plan

    def _say_unfit(self, call: AttentionCall) -> None:
        """Say, in the first layer, that the table is of another size than this call."""
        assert self.table is not None
        if call.layer == 0:
            warnings.warn(
                f"the pattern table is of {self.table.described()}, and this generation has {call.geometry.grid} "
                f"tokens, {call.layers} layers and {call.q.shape[1]} heads: it searches for itself; "
                "make a table of this size",
                stacklevel=2,
            )

    def _rank_columns(self, call: AttentionCall) -> Int[Tensor, "b h s"]:
        return rank_columns(call.q, call.k, call.scale, call.geometry, self._keeps_first_frame(call.geometry))

    def head_plan(self, call: AttentionCall, modes: list[list[str]], columns: Int[Tensor, "b1 h s"]) -> Sparse:
        """Return the plan in which head h of sample b follows modes[b][h]."""
        first_frame = self._keeps_first_frame(call.geometry)
        return head_mode_plan(modes, columns, call.geometry, self.density, self.block, call.q.device, first_frame)

    def _keeps_first_frame(self, geometry: Geometry) -> bool:
        return self.first_frame and 2 / geometry.frames <= self.density / 2

    def patterns(self, geometry: Geometry) -> dict[str, Sparse]:
        """Return each mode's plan of one head; stripes are those of evenly spaced columns."""
        columns = torch.arange(geometry.tokens)
        columns = torch.cat([columns[offset::8] for offset in range(8)])[None, None]
        first_frame = self._keeps_first_frame(geometry)
        return {
            mode: head_mode_plan([[mode]], columns, geometry, self.density, self.block, columns.device, first_frame)
            for mode in CANDIDATES
            if mode != "skip"
        }

    def choose_patterns(
        self, call: AttentionCall, out: Float[Tensor, "b h s d"]
    ) -> tuple[list[list[str]], Int[Tensor, "b h s"]]:
        """Return each sample's and head's mode and column ranking, given the full output of the call."""
        columns = self._rank_columns(call)
        errors = []
        for mode in CANDIDATES:
            if mode == "skip":
                errors.append(torch.ones(out.shape[:2], device=out.device))
                continue
            plan = _sampled(self.head_plan(call, [[mode] * out.shape[1]], columns))
            errors.append(_relative_error(call, plan, out))
        prices = [0.0 if mode == "skip" else self.penalty * self.density for mode in CANDIDATES]
        losses = torch.stack([error + price for error, price in zip(errors, prices, strict=True)])
        choice = losses.argmin(0, keepdim=True)
        choice = torch.where(torch.stack(errors).gather(0, choice) > self.tolerance, -1, choice)[0].tolist()
        return [["full" if index < 0 else CANDIDATES[index] for index in heads] for heads in choice], columns


def _sampled(plan: Sparse) -> Sparse:
    """Return the plan with all but every SAMPLE-th query block emptied."""
    counts = plan.block_map.counts.clone()
    counts[..., torch.arange(counts.shape[-1], device=counts.device) % SAMPLE != SAMPLE // 2 % counts.shape[-1]] = 0
    return Sparse(replace(plan.block_map, counts=counts), plan.q_order, plan.kv_order)


def _relative_error(call: AttentionCall, plan: Sparse, out: Float[Tensor, "b h s d"]) -> Float[Tensor, "b h"]:
    """Return each sample's and head's squared error over its squared output, on the rows that the plan computes."""
    approximation, lse = execute(call, plan)
    errors = []
    for head in range(out.shape[1]):  # one by one: all outputs in float32 are gigabytes where a video is long
        rows, exact = lse[:, head].isfinite()[..., None], out[:, head]
        error = ((approximation[:, head] - exact).float().square() * rows).sum((1, 2))
        errors.append(error / (exact.float().square() * rows).sum((1, 2)).clamp(min=1e-12))
    return torch.stack(errors, 1)

"""Re-ttention (arXiv 2505.22918): a mask at hand, corrected by what full attention showed some steps ago."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.corrections.in_turn import InTurn
from accel.attention.corrections.ratio import DenominatorRatio
from accel.attention.corrections.residual import CachedResidual, LowRankResidual, keep_residual
from accel.attention.execute import execute, full_attention
from accel.attention.masks.multi_diagonal import multi_diagonal_plan
from accel.attention.plan import Computed, Correction, Dense, Plan, Sparse
from accel.methods.method import Method, Scheduled, check_block, check_shares
from accel.naming import check_least

WIDER = 1.5  # times the density of the window that was asked for: then it is said
CORRECTIONS = ("both", "ratio", "residual", "none")


@dataclass
class ReTtentionState:
    """What the latest full step left: its number, ratio and residual; the mask, or the base's own memory."""

    plan: Sparse | None = None
    base: LayerMemory = field(default_factory=LayerMemory)
    refreshed: int | None = None
    sparse_steps: int = 0
    ratio: Float[Tensor, "b h s"] | None = None
    residual: CachedResidual | LowRankResidual | None = None


@dataclass(frozen=True)
class ReTtention(Scheduled):
    """Scale sparse attention by the softmax mass its keys held at the last full step, and add what was missing then.

    Published: 15 dense steps of 50, then a full step every 5; a window of 1/32 of the frame around each token's
    place, in every frame; after each sparse step the ratio grows by 0.04, past 1 if it comes to that. A `density`
    replaces the `window` by the one whose blocks come nearest. The window grows to whole blocks of tokens, on small
    grids to twice its width, which is said in a warning. `correction` is both, ratio, residual or none (the same
    schedule, nothing corrected). The residual is as large as the output: `residual_rank` keeps it at that rank per
    head (QuantSparse: 16), `offload` keeps it in pinned memory of the CPU.

    `base`, a method, replaces the window by its own mask, which the paper leaves open. Given by name (on the command
    line, or to `by_name` and `enable`) it takes this method's density (if given), dense_steps and dense_layers; a
    method object has its own, and calls are dense while either is in its warm-up. The base is asked in every step, so
    its mask may change between full steps. The ratio is kept then: it says how much mass a row's budget of keys
    holds, which one rule of selection reaches about as well with the keys it picks today. Taking exp(today's sparse
    LSE - the full LSE of then) would follow the mask, but also every shift of the logits' scale, which moves the LSE
    from step to step and cancels in the ratio only. The residual is kept as well and belongs to the keys it was made
    with: those dropped since are missed, those added count twice. It fits best where the base moves its mask at the
    full steps (XAttention: the same `every`). A base that makes up for missing keys itself gets no ratio, which would
    count them out again.
    """

    dense_steps: float = 0.3
    block: int = 64
    window: float = 0.03125
    every: int = 5
    growth: float = 0.04
    correction: str = "both"
    residual_rank: int | None = None
    offload: bool = False
    base: Method | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)
        check_shares(self, "window")
        check_least(self, 1, "every", "residual_rank")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"unknown correction {self.correction!r}; accepted: {', '.join(CORRECTIONS)}")
        if isinstance(self.base, str):
            raise ValueError(f"base is {self.base!r}; give a method object, or by_name('re-ttention', base=NAME)")
        if self.base is not None and self.density is not None:
            raise ValueError("density goes with a base's name only; set it on the base object")

    def without_dense_steps(self) -> ReTtention:
        """Return the same method without warm-up steps, its base's included."""
        base = self.base.without_dense_steps() if isinstance(self.base, Scheduled) else self.base
        return dataclasses.replace(self, dense_steps=0.0, base=base)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, full attention at refresh steps, else the corrected mask."""
        warm_up = self.phase(call) != "sparse"
        if call.layer < self.dense_layers or (warm_up and self.base is None):
            return Dense()
        state = memory.of(ReTtentionState)
        # In the warm-up too: there the base may search for the mask it uses later.
        plan = self._uncorrected(call, state)
        if not isinstance(plan, Sparse):
            return plan
        if warm_up:
            return Dense()
        if state.refreshed is None or call.progress.step - state.refreshed >= self.every:
            return self._refresh(call, plan, state)
        return self._corrected(plan, state)

    def _uncorrected(self, call: AttentionCall, state: ReTtentionState) -> Plan:
        if isinstance(self.base, Method):
            return self.base.plan(call, state.base)
        if state.plan is None:
            state.plan = multi_diagonal_plan(call.geometry, self.window, self.density, self.block, call.q.device)
            self._warn_of_wide_blocks(state.plan, call.geometry)
        return state.plan

    def _warn_of_wide_blocks(self, plan: Sparse, geometry: Geometry) -> None:
        asked = (2 * (int(self.window * geometry.frame_tokens) // 2) + 1) / geometry.frame_tokens
        video = (geometry.video_tokens / geometry.tokens) ** 2  # all other pairs are computed, whatever the blocks
        if self.density is None and plan.density > WIDER * (1 - video + video * asked):
            warnings.warn(
                f"re-ttention's window of density {asked:.3f} has density {plan.density:.3f} in blocks of {self.block} "
                f"tokens on a grid of {geometry.grid}; give a smaller block, or say the density that you want",
                stacklevel=2,
            )

    def patterns(self, geometry: Geometry) -> dict[str, Sparse]:
        """Return the plan of the window, if it is not replaced by a base's mask."""
        window = {"": multi_diagonal_plan(geometry, self.window, self.density, self.block, torch.device("cpu"))}
        return window if self.base is None else {}

    def _refresh(self, call: AttentionCall, plan: Sparse, state: ReTtentionState) -> Plan:
        """Return the full output; keep the share of the mass under the plan's keys, and what they leave to add."""
        # Freed before the new ones are made: there is never more than one residual.
        state.refreshed, state.sparse_steps, state.ratio, state.residual = call.progress.step, 0, None, None
        if self.correction == "none":
            return Dense()
        full, full_lse = full_attention(call, self.block)
        kept, kept_lse = execute(call, plan)
        if self.correction != "residual" and plan.correction is None and plan.summaries is None:
            state.ratio = (kept_lse - full_lse).exp()
        if self.correction != "ratio":
            # A low rank is found in float32; whole, what is missing is kept in the output's type.
            dtype = full.dtype if self.residual_rank is None else torch.float32
            missing = _missing(full, kept, state.ratio, dtype)
            state.residual = keep_residual(missing, full.dtype, rank=self.residual_rank, offload=self.offload)
        return Computed(full)

    def _corrected(self, plan: Sparse, state: ReTtentionState) -> Sparse:
        corrections: list[Correction] = [] if plan.correction is None else [plan.correction]
        if state.ratio is not None:
            corrections.append(DenominatorRatio(state.ratio, state.sparse_steps * self.growth))
        if state.residual is not None:
            corrections.append(state.residual)
        state.sparse_steps += 1
        if not corrections:
            return plan
        correction = corrections[0] if len(corrections) == 1 else InTurn(tuple(corrections))
        return dataclasses.replace(plan, correction=correction)


def _missing(
    full: Float[Tensor, "b h s d"],
    kept: Float[Tensor, "b h s d"],
    ratio: Float[Tensor, "b h s"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "b h s d"]:
    """Return what the kept keys' output, scaled by the ratio, lacks of the full one: found in float32, as `dtype`."""
    missing = torch.empty(full.shape, dtype=dtype, device=full.device)
    for head in range(full.shape[1]):  # one by one: all outputs in float32 are gigabytes where a video is long
        part = kept[:, head].float() if ratio is None else kept[:, head] * ratio[:, head, :, None]
        missing[:, head] = full[:, head].float() - part
    return missing

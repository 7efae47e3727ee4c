"""Re-ttention (arXiv 2505.22918): a mask at hand, corrected by what full attention showed some steps ago."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.corrections.residual import DenominatorRatio, InTurn, keep_residual
from accel.attention.execute import execute, full_attention
from accel.attention.masks.multi_diagonal import multi_diagonal_plan
from accel.attention.plan import Computed, Correction, Dense, Plan, Sparse
from accel.attention.schedule import dense_step_count
from accel.methods.checks import check_common, check_shares

if TYPE_CHECKING:
    from accel.methods import Method

CORRECTIONS = ("both", "ratio", "residual", "none")


@dataclass(frozen=True)
class ReTtention:
    """Scale sparse attention by the softmax mass its keys held at the last full step, and add what was missing then.

    Published: 15 dense steps of 50, then a full step every 5; a window of 1/32 of the frame around each token's
    place, in every frame; after each sparse step the ratio grows by 0.04, past 1 if it comes to that. A `density`
    replaces the `window` by the one whose blocks come nearest. `correction` is both, ratio, residual or none (the
    same schedule, nothing corrected). The residual is as large as the output: `residual_rank` keeps it at that rank
    per head (QuantSparse: 16), `offload` keeps it in pinned memory of the CPU.

    `base`, a method or the name of one, replaces the window by its own mask, which the paper leaves open. A name
    takes this method's density (if given), dense_steps and dense_layers; a method object has its own, and calls
    are dense while either is in its warm-up. The base is asked in every step, so its mask may change between full
    steps. The ratio is kept then: it says how much mass a row's budget of keys holds, which one rule of selection
    reaches about as well with the keys it picks today. Taking exp(today's sparse LSE - the full LSE of then) would
    follow the mask, but also every shift of the logits' scale, which moves the LSE from step to step and cancels in
    the ratio only. The residual is kept as well and belongs to the keys it was made with: those dropped since are
    missed, those added count twice. It fits best where the base moves its mask at the full steps (XAttention: the
    same `every`). A base that makes up for missing keys itself gets no ratio, which would count them out again.
    """

    density: float | None = None
    dense_steps: float = 0.3
    dense_layers: int = 0
    block: int = 64
    window: float = 0.03125
    every: int = 5
    growth: float = 0.04
    correction: str = "both"
    residual_rank: int | None = None
    offload: bool = False
    base: Method | str | None = None

    def __post_init__(self) -> None:
        check_common(self)
        check_shares(self, "window")
        if self.every < 1:
            raise ValueError(f"every must be 1 or more steps, got {self.every}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"unknown correction {self.correction!r}; accepted: {', '.join(CORRECTIONS)}")
        if self.residual_rank is not None and self.residual_rank < 1:
            raise ValueError(
                f"residual_rank must be 1 or more, or None for the whole residual, got {self.residual_rank}"
            )
        if self._base is not None and self._base is self.base and self.density is not None:
            raise ValueError("density goes with a base's name only; set it on the base object")

    @cached_property
    def _base(self) -> Method | None:
        from accel.methods import METHODS, by_name

        if not isinstance(self.base, str):
            return self.base
        handed_down = {"density": self.density, "dense_steps": self.dense_steps, "dense_layers": self.dense_layers}
        known = {field.name for field in dataclasses.fields(METHODS[self.base])} if self.base in METHODS else set()
        options = {name: value for name, value in handed_down.items() if name in known and value is not None}
        return by_name(self.base, **options)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return dense in the warm-up, full attention at refresh steps, else the corrected mask."""
        warm_up = call.progress.step < dense_step_count(self.dense_steps, call.progress.steps)
        if call.layer < self.dense_layers or (warm_up and self._base is None):
            return Dense()
        # In the warm-up too: there the base may search for the mask it uses later.
        plan = self._uncorrected(call, memory)
        if not isinstance(plan, Sparse):
            return plan
        if warm_up:
            return Dense()
        if call.progress.step - memory.values.get("refreshed", -self.every) >= self.every:
            return self._refresh(call, plan, memory)
        return self._corrected(plan, memory)

    def _uncorrected(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        if self._base is not None:
            return self._base.plan(call, memory.values.setdefault("base", LayerMemory()))
        if "plan" not in memory.values:
            memory.values["plan"] = multi_diagonal_plan(
                call.geometry, self.window, self.density, self.block, call.q.device
            )
        return memory.values["plan"]

    def _refresh(self, call: AttentionCall, plan: Sparse, memory: LayerMemory) -> Plan:
        """Return the full output; keep the share of the mass under the plan's keys, and what they leave to add."""
        memory.values.update(refreshed=call.progress.step, sparse_steps=0)
        if self.correction == "none":
            return Dense()
        # Freed before the new ones are made: there is never more than one residual.
        ratio = residual = None
        memory.values.update(ratio=None, residual=None)
        full, full_lse = full_attention(call, self.block)
        kept, kept_lse = execute(call, plan)
        if self.correction != "residual" and plan.correction is None:
            ratio = (kept_lse - full_lse).exp()
        if self.correction != "ratio":
            residual = keep_residual(
                _missing(full, kept, ratio), full.dtype, rank=self.residual_rank, offload=self.offload
            )
        memory.values.update(ratio=ratio, residual=residual)
        return Computed(full)

    def _corrected(self, plan: Sparse, memory: LayerMemory) -> Sparse:
        corrections: list[Correction] = [] if plan.correction is None else [plan.correction]
        if memory.values.get("ratio") is not None:
            corrections.append(DenominatorRatio(memory.values["ratio"], memory.values["sparse_steps"] * self.growth))
        if memory.values.get("residual") is not None:
            corrections.append(memory.values["residual"])
        memory.values["sparse_steps"] += 1
        if not corrections:
            return plan
        return dataclasses.replace(
            plan, correction=corrections[0] if len(corrections) == 1 else InTurn(tuple(corrections))
        )


def _missing(
    full: Float[Tensor, "b h s d"], kept: Float[Tensor, "b h s d"], ratio: Float[Tensor, "b h s"] | None
) -> Float[Tensor, "b h s d"]:
    """Return what the kept keys' output, scaled by the ratio, lacks of the full one, in float32."""
    return full.float() - (kept.float() if ratio is None else kept * ratio[..., None])

"""The state of one attached transformer: where the denoising loop is, what the layers remember, what happened."""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.execute import execute, full_attention, sampled_recall
from accel.attention.plan import Computed, Sparse
from accel.models.records import CallRecord
from accel.models.stopwatch import Stopwatch
from sparse_kernels import outruns_sdpa


class Session:
    """Plans and runs the attention of one transformer; memories live for one generation, records until the next."""

    def __init__(self, method: Any, layers: int):
        self.method = method
        self.layers = layers
        self.geometry: Geometry | None = None
        self.progress: Progress | None = None
        # Recall and time stay on the device until somebody reads them.
        self._records: list[tuple[CallRecord, Tensor | None, Stopwatch]] = []
        self._memories: dict[tuple[int, str, Geometry], LayerMemory] = defaultdict(LayerMemory)
        self._finished = False
        self._warned: set[str] = set()
        self.peak_memory_bytes = 0

    def begin_call(self, geometry: Geometry | None, progress: Progress | None) -> None:
        """Note grid and progress of the transformer call that starts; a step back starts a new generation."""
        before = self.progress
        went_back = (
            progress is not None
            and before is not None
            and (progress.step, progress.steps)
            < (
                before.step,
                progress.steps,
            )
        )
        if self._finished or went_back or (progress and before and progress.steps != before.steps):
            self._memories.clear()
            self._records = []
            self._finished = False
            self.peak_memory_bytes = 0
        self._note_memory()
        self.geometry, self.progress = geometry, progress

    def end_generation(self) -> None:
        """Drop what the layers remember; the records stay readable until the next generation starts."""
        self._note_memory()
        self._memories.clear()
        self._finished = True
        self.progress = None

    @property
    def records(self) -> list[CallRecord]:
        """One record for each attention call of the latest generation."""
        return [
            dataclasses.replace(
                record,
                seconds=watch.seconds(),
                plan_seconds=watch.seconds(lap=0),
                recall=None if recall is None else recall.item(),
            )
            for record, recall, watch in self._records
        ]

    def memory_bytes(self) -> int:
        """Return the size of all that the layers remember now, in bytes."""
        return sum(memory.nbytes() for memory in self._memories.values())

    def _note_memory(self) -> None:
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory_bytes())

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dense: Callable[[], Tensor],
        *,
        free_choice: bool = True,
    ) -> Tensor:
        """Return the attention (b s h d) of one self-attention call; `dense()` runs what the pipeline would have.

        With `free_choice` our kernel computes what the method leaves dense, where it is faster.
        """
        reason = self._obstacle(q, k, mask)
        if reason is not None:
            self.warn_once(reason)
            return dense()
        assert self.geometry is not None and self.progress is not None
        watch = Stopwatch(q)
        call = AttentionCall(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layer, self.layers, self.geometry, self.progress
        )
        plan = self.method.plan(call, self._memories[layer, self.progress.branch, self.geometry])
        watch.lap()
        density, recall, kind = 1.0, None, "dense"
        if isinstance(plan, Sparse):
            attended, lse = execute(call, plan)
            out = attended.transpose(1, 2)
            density, recall, kind = plan.density, sampled_recall(call, lse), "sparse"
        elif isinstance(plan, Computed):
            out, kind = plan.out.transpose(1, 2), "refresh"
        elif free_choice and outruns_sdpa(call.q):
            out = full_attention(call)[0].transpose(1, 2)
        else:
            out = dense()
        watch.lap()
        self._note(call, kind, density, recall, watch)
        return out

    def _note(self, call: AttentionCall, kind: str, density: float, recall: Tensor | None, watch: Stopwatch) -> None:
        progress, shape = call.progress, tuple(call.q.shape)
        record = CallRecord(
            progress.step,
            progress.steps,
            call.layer,
            progress.branch,
            kind,
            density,
            0.0,
            None,
            shape,  # type: ignore[arg-type]
        )
        self._records.append((record, recall, watch))

    def _obstacle(self, q: Tensor, k: Tensor, mask: Tensor | None) -> str | None:
        """Return why this call cannot be sparse, or None."""
        if self.geometry is None:
            return "the latent grid of this call is unknown"
        if self.progress is None:
            return "the denoising step of this call is unknown (attach to the pipeline, not to the bare transformer)"
        if mask is not None:
            return "the model passes an attention mask"
        if q.shape[1] != self.geometry.tokens or k.shape[1] != self.geometry.tokens:
            return f"the sequence has {q.shape[1]} tokens, the latent grid {self.geometry.tokens}"
        if torch.is_grad_enabled() and q.requires_grad:
            return "gradients are asked for"
        return None

    def warn_once(self, reason: str) -> None:
        """Say once that calls run dense, and why."""
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"accel runs dense attention: {reason}", stacklevel=2)

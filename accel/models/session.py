"""One method on one transformer: plans and runs its attention calls."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.execute import attend, full_attention
from accel.attention.heads import HeadShare
from accel.attention.plan import Dense, Plan
from accel.methods.method import Chooser, Method
from accel.models.autocast import Stock, autocast_of
from accel.models.denoising import Denoising
from accel.models.interception import scores_are_skipped
from accel.models.obstacles import obstacle_to
from accel.models.padding import Rows, rows_by_sample, valid_rows, without_padding
from accel.models.stopwatch import Stopwatch
from sparse_kernels import backend_reasons, outruns_sdpa


@dataclass(frozen=True)
class _Where:
    """What is the same for all samples of one call."""

    layer: int
    number: int
    scale: float
    chosen: bool
    stock: Stock
    share: HeadShare | None


class Session:
    """Plans and runs the attention of one transformer; where it stands is known to `denoising`.

    A method of None leaves attention to the pipeline: nothing is asked here. With `one_mask` all layers of a forward
    call have the same mask, made anew in each.
    """

    def __init__(self, method: Method | None, layers: int, one_mask: bool = False):
        self.method = method
        self.layers = layers
        self._one_mask = one_mask
        self.denoising = Denoising()
        self._warned: set[str] = set()
        self._reasons: dict[tuple[torch.dtype, int], str | None] = {}

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "b s h d"],
        k: Float[Tensor, "b s2 h2 d"],
        v: Float[Tensor, "b s2 h2 d"],
        *,
        stock: Stock,
        mask: Any = None,
        scale: float | None = None,
        number: int = 0,
        chosen: bool = False,
        obstacle: str | None = None,
        share: HeadShare | None = None,
    ) -> Float[Tensor, "b s h d"]:
        """Return the attention of one self-attention call; `stock(q, k, v, mask)` runs what the pipeline would have.

        Where nobody has `chosen` that, our kernel computes what the method leaves dense, if it is faster. A `mask` may
        say which rows are padding. A scale of None is head_dim**-0.5. `number` counts the calls of one processor
        call. An `obstacle` is a reason to run dense. The `share` of the heads is said where devices share them.
        """
        geometry, given, autocast = self.denoising.current.geometry, (q, k, v), autocast_of(q)
        # As at an IP-Adapter's pictures.
        looks_elsewhere = geometry is not None and k.shape[1] < geometry.video_tokens <= q.shape[1]
        if looks_elsewhere or scores_are_skipped():
            return stock(q, k, v, mask)
        if autocast is not None:  # queries and keys come in float32 from their norms, values do not
            q, k, v = (autocast.rounded(x) for x in given)
        obstacle, samples = obstacle or self._obstacle(q, k, v, share), None
        if obstacle is None and mask is not None:
            obstacle, samples = self._padding(mask, q)
        if obstacle is not None:
            self.note_dense(obstacle)
            return stock(*given, mask)
        scale = float(q.shape[-1] ** -0.5) if scale is None else scale
        stock = stock if autocast is None else autocast.around(stock)
        run = partial(self._attend, _Where(layer, number, scale, chosen, stock, share))
        with nullcontext() if autocast is None else autocast.off():
            return run(q, k, v, None) if samples is None else without_padding(run, q, k, v, samples)

    def _attend(
        self, where: _Where, q: Float[Tensor, "b s h d"], k: Float[Tensor, "b s h2 d"], v: Float[Tensor, "b s h2 d"],
        sample: int | None,
    ) -> Float[Tensor, "b s h d"]:  # fmt: skip
        """Plan and run the attention of rows that are all valid, of all the batch or of one sample."""
        generation = self.denoising.current
        assert generation.geometry is not None and generation.progress is not None
        geometry = generation.geometry.filled_to(q.shape[1])
        progress = generation.progress if sample is None else replace(generation.progress, sample=sample)
        watch = Stopwatch(q)
        shared = q.shape[2] // k.shape[2]
        q_heads = q.transpose(1, 2)
        k_heads, v_heads = (
            x.transpose(1, 2).repeat_interleave(shared, 1) if shared > 1 else x.transpose(1, 2) for x in (k, v)
        )

        def dense() -> Float[Tensor, "b h s d"]:
            if not where.chosen and outruns_sdpa(call.q):
                return full_attention(call)[0]
            return where.stock(q, k, v, None).transpose(1, 2)

        call = AttentionCall(
            q_heads, k_heads, v_heads, where.layer, self.layers, geometry, progress, where.scale, dense, where.chosen,
            where.share,
        )  # fmt: skip
        key = where.layer, where.number, progress.branch, progress.sample, len(q), geometry
        plan = self._plan(call, generation.memories[key])
        if progress.is_last:
            generation.memories.pop(key, None)  # now: the pipeline says that it has ended when the video is decoded
        watch.lap()
        attended = attend(call, plan)
        generation.records.add(call, attended, watch)
        return attended.out.transpose(1, 2)

    def _plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the method's plan; one that stands for others chooses once a generation, and says what."""
        assert self.method is not None
        if not isinstance(self.method, Chooser):
            return self.method.plan(call, memory)
        generation = self.denoising.current
        if generation.choice is None:
            generation.choice = self.method.choose(call)
            if generation.choice.method is None:
                self.warn_once(generation.choice.line)
            else:
                logging.getLogger("accel").info(generation.choice.line)
        chosen = generation.choice.method
        return Dense() if chosen is None else chosen.plan(call, memory)

    def _padding(self, mask: Any, q: Float[Tensor, "b s h d"]) -> tuple[str | None, list[Rows] | None]:
        """Return why a mask cannot be obeyed, or None and the rows that are no padding, where some are."""
        if not isinstance(mask, Tensor):
            return f"the model brings sparsity of its own, in a {type(mask).__name__}", None
        is_padding, samples = self._read(mask, q)
        if is_padding:
            return None, samples
        return "the model passes an attention mask that says more than what is padding beside the video", None

    def _read(self, mask: Tensor, q: Float[Tensor, "b s h d"]) -> tuple[bool, list[Rows] | None]:
        """Return whether a mask says only what is padding beside the video, and the rows that are none.

        One that all layers share is read once.
        """
        generation, (batch, tokens) = self.denoising.current, q.shape[:2]
        key: Any = mask
        if self._one_mask:
            assert generation.progress is not None
            key = generation.calls, generation.progress.sample, mask.shape
        before = None if generation.mask is None else generation.mask[0]
        if not (before == key if self._one_mask else before is key):
            valid, geometry = valid_rows(mask, batch, tokens), generation.geometry
            assert geometry is not None
            is_padding = valid is not None and bool(valid[:, geometry.filled_to(tokens).video].all())
            samples = rows_by_sample(valid) if valid is not None and is_padding else None
            generation.mask = key, is_padding, samples
        assert generation.mask is not None
        return generation.mask[1:]

    def _obstacle(self, q: Tensor, k: Tensor, v: Tensor, share: HeadShare | None) -> str | None:
        """Return why this call cannot be sparse, or None."""
        found = obstacle_to(q, k, v, self.denoising.current, share)
        reason = self._reason_against_kernel(q) if found is None else None
        return found if reason is None else f"only the slow reference could run here: {reason}"

    def _reason_against_kernel(self, q: Tensor) -> str | None:
        """Return why a GPU has no kernel for such heads, or None; a CPU without a compiler says so by itself."""
        if q.device.type == "cpu":
            return None
        kind = q.dtype, q.shape[-1]
        if kind not in self._reasons:
            self._reasons[kind] = backend_reasons(str(q.device), *kind)["triton"]
        return self._reasons[kind]

    def note_dense(self, reason: str) -> None:
        """Count a call that runs dense, and say once why."""
        self.warn_once(reason)
        self.denoising.current.obstacles[reason] += 1

    def warn_once(self, reason: str) -> None:
        """Say once that calls run dense, and why."""
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"accel runs dense attention: {reason}", stacklevel=2)

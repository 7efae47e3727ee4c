"""One method on one transformer: plans and runs its attention calls."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
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
from accel.models.denoising import Denoising
from accel.models.padding import Rows, rows_by_sample, valid_rows, without_padding
from accel.models.stopwatch import Stopwatch
from sparse_kernels import backend_reasons, outruns_sdpa

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Stock = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


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
        geometry, samples = self.denoising.current.geometry, None
        if geometry is not None and k.shape[1] < geometry.video_tokens <= q.shape[1]:
            return stock(q, k, v, mask)  # the video looks at something else here, as at an IP-Adapter's pictures
        obstacle = obstacle or self._obstacle(q, k)
        if mask is not None and not isinstance(mask, Tensor):
            obstacle = obstacle or f"the model brings sparsity of its own, in a {type(mask).__name__}"
        if mask is not None and obstacle is None:
            is_padding, samples = self._read(mask, q)
            if not is_padding:
                obstacle = "the model passes an attention mask that says more than what is padding beside the video"
        if obstacle is not None:
            self.warn_once(obstacle)
            self.denoising.current.obstacles[obstacle] += 1
            return stock(q, k, v, mask)
        where = _Where(layer, number, q.shape[-1] ** -0.5 if scale is None else scale, chosen, stock, share)
        if samples is None:
            return self._attend(where, q, k, v, None)
        return without_padding(partial(self._attend, where), q, k, v, samples)

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

    def _obstacle(self, q: Tensor, k: Tensor) -> str | None:
        """Return why this call cannot be sparse, or None."""
        geometry, progress = self.denoising.current.geometry, self.denoising.current.progress
        if geometry is None:
            return "the latent grid of this call is unknown"
        if progress is None:
            return "the denoising step of this call is unknown (attach to the pipeline that runs, not its transformer)"
        if q.shape[1] != k.shape[1] or not geometry.fits(q.shape[1]):
            return (
                f"the sequence has {q.shape[1]} queries and {k.shape[1]} keys, the latent grid {geometry.tokens} tokens"
            )
        if q.shape[2] % k.shape[2]:
            return f"{q.shape[2]} query heads do not share {k.shape[2]} heads of keys evenly"
        if q.dtype not in DTYPES:
            return f"the kernels take {', '.join(str(dtype) for dtype in DTYPES)}, not {q.dtype}"
        if torch.is_grad_enabled() and q.requires_grad:
            return "gradients are asked for"
        reason = self._reason_against_kernel(q)
        return None if reason is None else f"only the slow reference could run here: {reason}"

    def _reason_against_kernel(self, q: Tensor) -> str | None:
        """Return why a GPU has no kernel for such heads, or None; a CPU without a compiler says so by itself."""
        if q.device.type == "cpu":
            return None
        kind = q.dtype, q.shape[-1]
        if kind not in self._reasons:
            self._reasons[kind] = backend_reasons(str(q.device), *kind)["triton"]
        return self._reasons[kind]

    def warn_once(self, reason: str) -> None:
        """Say once that calls run dense, and why."""
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"accel runs dense attention: {reason}", stacklevel=2)

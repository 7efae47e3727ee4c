"""One method on one transformer: plans and runs its attention calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.execute import attend, full_attention
from accel.methods.method import Method
from accel.models.denoising import Denoising
from accel.models.stopwatch import Stopwatch
from sparse_kernels import outruns_sdpa

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Session:
    """Plans and runs the attention of one transformer; where it stands is known to `denoising`.

    A method of None leaves attention to the pipeline: nothing is asked here.
    """

    def __init__(self, method: Method | None, layers: int):
        self.method = method
        self.layers = layers
        self.denoising = Denoising()
        self._warned: set[str] = set()

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "b s h d"],
        k: Float[Tensor, "b s2 h2 d"],
        v: Float[Tensor, "b s2 h2 d"],
        *,
        stock: Callable[[], Float[Tensor, "b s h d"]],
        scale: float | None = None,
        chosen: bool = False,
        obstacle: str | None = None,
    ) -> Float[Tensor, "b s h d"]:
        """Return the attention of one self-attention call; `stock()` runs what the pipeline would have.

        Where nobody has `chosen` that, our kernel computes what the method leaves dense, if it is faster. A scale of
        None is head_dim**-0.5. An `obstacle` is a reason to run dense.
        """
        obstacle = obstacle or self._obstacle(q, k)
        if obstacle is not None:
            self.warn_once(obstacle)
            return stock()
        generation = self.denoising.current
        assert self.method is not None
        geometry, progress = generation.geometry, generation.progress
        assert geometry is not None and progress is not None
        watch = Stopwatch(q)
        q_heads, k_heads, v_heads = (x.transpose(1, 2) for x in (q, k, v))

        def dense() -> Float[Tensor, "b h s d"]:
            return full_attention(call)[0] if not chosen and outruns_sdpa(call.q) else stock().transpose(1, 2)

        call = AttentionCall(
            q_heads, k_heads, v_heads, layer, self.layers, geometry, progress,
            scale=q.shape[-1] ** -0.5 if scale is None else scale, dense=dense, chosen=chosen,
        )  # fmt: skip
        memory = generation.memories[layer, progress.branch, progress.sample, len(q), geometry]
        plan = self.method.plan(call, memory)
        watch.lap()
        attended = attend(call, plan)
        generation.records.add(call, attended, watch)
        return attended.out.transpose(1, 2)

    def _obstacle(self, q: Tensor, k: Tensor) -> str | None:
        """Return why this call cannot be sparse, or None."""
        geometry, progress = self.denoising.current.geometry, self.denoising.current.progress
        if geometry is None:
            return "the latent grid of this call is unknown"
        if progress is None:
            return "the denoising step of this call is unknown (attach to the pipeline, not to the bare transformer)"
        if q.shape[1] != geometry.tokens or k.shape[1] != geometry.tokens:
            return (
                f"the sequence has {q.shape[1]} queries and {k.shape[1]} keys, the latent grid {geometry.tokens} tokens"
            )
        if q.shape[2] != k.shape[2]:
            return f"{q.shape[2]} query heads share {k.shape[2]} heads of keys (grouped-query attention)"
        if q.dtype not in DTYPES:
            return f"the kernels take {', '.join(str(dtype) for dtype in DTYPES)}, not {q.dtype}"
        if torch.is_grad_enabled() and q.requires_grad:
            return "gradients are asked for"
        return None

    def warn_once(self, reason: str) -> None:
        """Say once that calls run dense, and why."""
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"accel runs dense attention: {reason}", stacklevel=2)

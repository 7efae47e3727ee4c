"""Why an attention call cannot be sparse, as far as its tensors and its place in a generation tell."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attention.heads import HeadShare
from accel.models.denoising import Generation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def obstacle_to(q: Tensor, k: Tensor, v: Tensor, generation: Generation, share: HeadShare | None) -> str | None:
    """Return what keeps a call (b s h d) from being sparse, or None; the `share` of heads where devices share them."""
    geometry, progress = generation.geometry, generation.progress
    if geometry is None:
        return "the latent grid of this call is unknown"
    if progress is None:
        return "the denoising step of this call is unknown (attach to the pipeline that runs, not its transformer)"
    if q.shape[1] != k.shape[1] or not geometry.fits(q.shape[1]):
        return f"the sequence has {q.shape[1]} queries and {k.shape[1]} keys, the latent grid {geometry.tokens} tokens"
    if share is not None and generation.in_pieces and q.shape[1] > geometry.video_tokens:
        return "devices that share the sequence (context parallelism) may hold rows of text and of video by turns"
    if q.shape[2] % k.shape[2]:
        return f"{q.shape[2]} query heads do not share {k.shape[2]} heads of keys evenly"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v differ in type: {q.dtype}, {k.dtype} and {v.dtype}"
    if q.dtype not in DTYPES:
        return f"the kernels take {', '.join(str(dtype) for dtype in DTYPES)}, not {q.dtype}"
    return "gradients are asked for" if torch.is_grad_enabled() and q.requires_grad else None

"""Attention of a sequence that several devices share: each gets all of it for a share of the heads (Ulysses)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.models.attention_dispatch import _templated_context_parallel_attention
from jaxtyping import Float
from torch import Tensor, nn

from accel.attention.heads import HeadShare
from accel.models.hooks import hooks_of

# (q, k, v, mask, arguments, heads) -> out
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any], HeadShare], Tensor]


def reason_against_exchange(q: Tensor, k: Tensor, config: Any) -> str | None:
    """Return why the heads cannot be shared under a parallel configuration, or None."""
    context = config.context_parallel_config
    if context.ring_degree > 1:
        return "ring attention (context parallelism) shares the keys among devices; take ulysses_degree to be sparse"
    if q.shape[2] != k.shape[2]:
        return "heads share keys under context parallelism"
    if q.shape[2] % context.ulysses_degree:
        return f"{q.shape[2]} heads cannot be shared evenly by {context.ulysses_degree} devices (context parallelism)"
    return None


def text_is_split(transformer: nn.Module) -> bool:
    """Whether each of the devices that share a sequence has a piece of the text, beside one of the video.

    A layer that joins the two has text and video by turns then, where all rows are together.
    """
    return any(
        isinstance(hook, ContextParallelSplitHook) and "encoder_hidden_states" in hook.metadata
        for _, hook in hooks_of(transformer.modules())
    )


def attend_over_heads(
    attend: Attend, q: Float[Tensor, "b s h d"], k: Float[Tensor, "b s2 h d"], v: Float[Tensor, "b s2 h d"],
    mask: Tensor | None, arguments: dict[str, Any],
) -> Float[Tensor, "b s h d"]:  # fmt: skip
    """Return what `attend` gives for this device's rows: it is called with all rows of this device's heads.

    Diffusers exchanges rows for heads, and back (DeepSpeed-Ulysses, arXiv 2309.14509). No gradients.
    """
    config = arguments["parallel_config"]
    alone = arguments | {"parallel_config": None}
    share = _share(config.context_parallel_config, q.shape[2])

    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: Any, **options: Any) -> Tensor:
        return attend(q, k, v, mask, alone, share)

    out: Any = _templated_context_parallel_attention(  # an LSE beside it comes only when asked for
        q, k, v, mask, scale=arguments["scale"], forward_op=forward, backward_op=None, _parallel_config=config
    )
    return out


def _share(context: Any, heads: int) -> HeadShare:
    group, count = context._ulysses_mesh.get_group(), context.ulysses_degree

    def gather(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count)]
        torch.distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, 1)

    return HeadShare(context._ulysses_local_rank * (heads // count), gather)

"""Attention, and the note of where a call is, as operators: a compiled graph goes through without a look inside.

Planning branches on tensors and keeps what it saw: traced, it would be compiled anew for every layer and step.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accel.attention.call import Geometry
from accel.models.interception import scores_are_skipped

# Graphs hold tensors and no objects, so processors and hooks go into them as numbers. They are kept in tensors: a
# plain number would be part of the graph, and each layer have its own.
_asked: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()


def number_of(asked: Any) -> Int[Tensor, ""]:
    """Return what stands in graphs, as long as it lives, for whose `attend_eagerly` or `note_eagerly` they ask."""
    number = next(_numbers)
    _asked[number] = asked
    return torch.tensor(number, device="cpu")  # whatever the default device: to read it there waits for nothing


def _find(number: Tensor) -> Any:
    asked = _asked.get(int(number))
    if asked is None:
        raise RuntimeError("this compiled graph is of an accel that has been disabled; compile the transformer again")
    return asked


@torch.library.custom_op(
    "accel::attend",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor processor, int call, float dropout_p, bool is_causal, "
    "float? scale, bool enable_gqa) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def attend_in_graph(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, processor: Tensor, call: int,
    dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Return what a processor makes of one of its calls, all tensors (b s h d), the output without gaps.

    The `processor` is its number. RuntimeError if there is none of it any more: the graph was kept for longer than what
    it was made of.
    """
    arguments = dict(dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    out = _find(processor).attend_eagerly(q, k, v, mask, arguments, call).contiguous()
    # No operator may return what it was given, as attention does whose scores are skipped.
    return out.clone() if out.data_ptr() == v.data_ptr() else out


@attend_in_graph.register_fake
def _(q: Float[Tensor, "b s h d"], k: Tensor, v: Float[Tensor, "b s2 h2 d2"], *rest: Any) -> Float[Tensor, "b s h d2"]:
    return q.new_empty(*q.shape[:3], v.shape[-1])


@torch.library.custom_op(
    "accel::note",
    mutates_args=(),
    schema="(Tensor timestep, Tensor hook, SymInt[] grid, str? rest) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def note_in_graph(timestep: Tensor, hook: Tensor, grid: list[int], rest: str | None) -> Tensor:
    """Tell the hook of that number timestep and geometry of the call that starts, and return the timestep to use.

    What is computed with that comes after the note.
    """
    _find(hook).note_eagerly(timestep, Geometry(*grid, rest=rest))
    return timestep.clone()


@note_in_graph.register_fake
def _(timestep: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(timestep)


def may_be_in_graph(*inputs: Any) -> bool:
    """Whether the calls of these inputs, which are being compiled, can be the operator.

    Not where autocast chooses types, gradients are asked for, or scores are skipped, which nothing tells an operator.
    """
    if scores_are_skipped():
        return False
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return not any(torch.is_autocast_enabled(x.device.type) for x in tensors)

"""Presets: the method and its options by the number of steps and tokens, or dense where sparsity gains nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.plan import Dense, Plan
from accel.attention.schedule import dense_step_count
from accel.methods.floor import SIZES, Shape, token_floor
from accel.methods.method import Choice
from accel.methods.svg_ear import SVGEAR
from sparse_kernels import backend_reasons

FEW_STEPS = 10
SMALL_GRID = 8192  # tokens below which clusters of the usual size are too few to tell tokens apart
LEAST_OF_VIDEO = 0.5  # share of the pairs that can be left out at all
CPU_HEADS = 2  # timed on a CPU: more take as much longer, densely and sparsely


def settings(steps: int, tokens: int, computed: int | None = None) -> SVGEAR:
    """Return svg-ear as it does best in that many steps and tokens, found by trial on shapes-wan (docs/methods.md).

    Of the steps a cache computes as many as `computed`, all if that is None.
    """
    method = SVGEAR()
    if (computed or steps) < FEW_STEPS:  # a first call that costs less than a dense one
        # One dense step; where a cache goes on from few steps, one more of them is worth more than a dense one.
        dense = 1 / steps if computed is None and steps > 1 else 0.0
        method = replace(method, dense_steps=dense, first_iterations=5)
    if tokens < SMALL_GRID:
        queries, keys = max(1, round(tokens / 64)), max(1, round(tokens / 32))
        method = replace(method, density=0.4, query_clusters=queries, key_clusters=keys)
    return method


@dataclass(frozen=True)
class Preset:
    """Choose svg-ear's options by the number of steps, or dense attention below the tokens from which it is quicker.

    What `choose` returns holds for all calls of a generation. `computed_steps` says of a number of steps which ones a
    cache computes, None where it decides as it goes; without a cache it is None itself. A shorter run that
    `warms_up_for` a generation of so many steps chooses, and times, what that will choose, without dense steps.
    """

    computed_steps: Callable[[int], list[int] | None] | None = field(default=None, repr=False)
    warms_up_for: int | None = field(default=None, repr=False)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Decide as the method does that is chosen for this call."""
        method = self.choose(call).method
        return Dense() if method is None else method.plan(call, memory)

    def choose(self, call: AttentionCall) -> Choice:
        """Return the method for the tokens and steps of the first call of a generation, or dense attention and why."""
        tokens, steps = call.geometry.tokens, self.warms_up_for or call.progress.steps
        known = None if self.computed_steps is None else self.computed_steps(steps)
        method_for = partial(settings, steps, computed=None if known is None else len(known))
        method, computed = method_for(tokens), range(steps) if known is None else known
        sparse_steps = sum(step >= dense_step_count(method.dense_steps, steps) for step in computed)
        dense = _reason_to_stay_dense(call, steps, method_for, max(1, sparse_steps))
        if dense is not None:
            return Choice(None, f"{dense}; name a method to have it all the same")
        said = "" if known is None else f", {len(known)} of them computed,"
        line = f"the preset for {tokens:,} tokens in {steps} steps{said} is {_text(method)}"
        return Choice(method if self.warms_up_for is None else method.without_dense_steps(), line)


def _reason_to_stay_dense(
    call: AttentionCall, steps: int, method_for: Callable[[int], SVGEAR], sparse_steps: int
) -> str | None:
    """Return why a generation of so many steps stays dense, or None; all devices that share the heads do alike."""
    tokens = call.geometry.tokens
    own, reason = _own_floor(call, method_for, sparse_steps)
    floor = _agreed(call, own)
    if reason is not None or tokens >= floor:
        return reason
    if own < floor == math.inf:
        return "another process that shares the heads stays dense, and says why"
    least = "at no length that could be timed" if floor == math.inf else f"from about {round(floor, -2):,.0f} tokens on"
    return f"of {steps} steps sparse attention is quicker here {least}, and these are {tokens:,}"


def _own_floor(call: AttentionCall, method_for: Callable[[int], SVGEAR], sparse_steps: int) -> tuple[float, str | None]:
    """Return from how many tokens on sparse attention is quicker here, or inf, and what stands against it.

    It raises nothing where others share the heads: they wait for an answer.
    """
    try:
        reason = _obstacle(call)
        if reason is not None:
            return math.inf, reason
        heads, channels, device = call.q.shape[1], call.q.shape[3], call.q.device
        heads = heads if device.type == "cuda" else min(heads, CPU_HEADS)
        shape = Shape(heads, channels, call.q.dtype, device, torch.get_num_threads())
        tokens = call.geometry.tokens
        return token_floor(lambda size: method_for(size).without_dense_steps(), sparse_steps, shape, tokens), None
    except torch.OutOfMemoryError:
        return math.inf, None
    except Exception as error:  # whatever a driver or a compiler may say
        if call.share is None:
            raise
        first = (str(error).strip() or "it said nothing").splitlines()[0]
        return math.inf, f"sparse attention could not be timed here: {type(error).__name__}: {first}"


def _obstacle(call: AttentionCall) -> str | None:
    """Return why nothing has to be timed to stay dense, or None."""
    tokens, device = call.geometry.tokens, call.q.device
    if tokens < SIZES[0]:
        return f"{tokens:,} tokens are too few for sparse attention to gain and stay close"
    of_video = call.geometry.video_tokens**2 / tokens**2
    if of_video < LEAST_OF_VIDEO:
        return f"only {of_video:.0%} of the pairs of tokens are of the picture alone, and all others are computed"
    reason = backend_reasons(str(device))["triton" if device.type == "cuda" else "cpu"]
    return None if reason is None else f"there is no quick kernel for sparse attention here: {reason}"


def _agreed(call: AttentionCall, floor: float) -> float:
    """Return the highest floor of all devices that share the heads: they must choose alike."""
    own = torch.full((1, call.q.shape[1], 1), floor, device=call.q.device)
    return call.all_heads(own).max().item()


def _text(method: SVGEAR) -> str:
    """Return a method as the command line takes it, with the options that are not its defaults."""
    changed = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if getattr(method, field.name) != field.default
    }
    return ":".join(["svg-ear", *(f"{name}={value:g}" for name, value in changed.items())])

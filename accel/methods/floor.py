"""From how many tokens on a method is quicker than dense attention: timed, once for each shape and device."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.execute import attend, full_attention
from accel.methods.method import Method
from sparse_kernels import outruns_sdpa

SIDE = 16
SIZES = 2048, 4096, 8192  # tokens
# A GPU has done these before the next call is launched: what larger ones would gain cannot be told from them.
GPU_SIZES = 8192, 16384, 32768, 65536
REPEATS = 2
LEAST_GAIN = 1.1  # what a tie would gain is not worth another picture


@dataclass(frozen=True)
class Shape:
    """What the time of an attention call depends on beside its tokens; `threads` is the number that torch uses."""

    heads: int
    channels: int
    dtype: torch.dtype
    device: torch.device
    threads: int


def token_floor(
    method_for: Callable[[int], Method], sparse_steps: int, shape: Shape, wanted: float = math.inf
) -> float:
    """Return from how many tokens on the method for so many is quicker than dense attention over its sparse steps.

    Its first call, which may search or cluster from nothing, counts once. The gain is taken to rise evenly with the
    logarithm of the tokens between the two sizes next to the floor, and beyond the largest one. Sizes beyond the tokens
    that are `wanted` are not timed, but for the second one, without which there is no rise. torch.OutOfMemoryError
    where a size does not fit beside the model.
    """
    gains: list[float] = []
    sizes = GPU_SIZES if shape.device.type == "cuda" else SIZES
    for tokens in sizes:
        dense, first, later = seconds(method_for(tokens), tokens, shape)
        gains.append(sparse_steps * dense / (first + (sparse_steps - 1) * later))
        if gains[-1] >= LEAST_GAIN or (tokens >= wanted and len(gains) > 1):
            break
    last = sizes[len(gains) - 1]
    if len(gains) == 1:
        return last
    rise = gains[-1] - gains[-2]
    return last * 2 ** ((LEAST_GAIN - gains[-1]) / rise) if rise > 0 else math.inf


@functools.cache
@torch.no_grad()
def seconds(method: Method, tokens: int, shape: Shape) -> tuple[float, float, float]:
    """Return the fewest seconds of dense attention, of a method's first call and of a later one, on made-up tokens."""
    generator = torch.Generator(shape.device).manual_seed(0)
    size, where = (3, 1, shape.heads, tokens, shape.channels), {"device": shape.device, "dtype": shape.dtype}
    q, k, v = torch.randn(size, generator=generator, **where)
    times: list[tuple[float, ...]] = []
    for _ in range(REPEATS):  # the first one warms up
        memory = LayerMemory()
        runs = [lambda: _dense(q, k, v)]
        for step in range(2):
            call = _call(q, k, v, step)
            runs.append(lambda call=call, memory=memory: attend(call, method.plan(call, memory)).out)
        times.append(tuple(_timed(run, shape.device) for run in runs))
    dense, first, later = (min(each) for each in zip(*times, strict=True))
    return dense, first, later


def _call(q: Tensor, k: Tensor, v: Tensor, step: int) -> AttentionCall:
    geometry, scale = Geometry(q.shape[2] // SIDE**2, SIDE, SIDE), q.shape[3] ** -0.5
    return AttentionCall(q, k, v, 0, 1, geometry, Progress(step, 2, ""), scale, lambda: _dense(q, k, v))


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what a dense call gives that nobody has chosen a backend for."""
    return full_attention(_call(q, k, v, 0))[0] if outruns_sdpa(q) else scaled_dot_product_attention(q, k, v)


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""The same video made densely and sparsely, from one seed, timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from typing_extensions import Unpack

from accel.attach import disable, enabled
from accel.caching.policy import Policy
from accel.methods.method import Method, Scheduled
from accel.methods.preset import Preset
from accel.models.records import BlockRecord, CallRecord
from accel.workbench.generation import (
    CallOptions,
    Generation,
    ProgressFunction,
    attached,
    call_arguments,
    generate_call,
    run,
    step_counter,
)
from accel.workbench.loading import LoadedPipeline
from accel.workbench.metrics import attention_times, psnr, ssim
from accel.workbench.their_caches import Cache

# The first step of a method may only plan, the second one runs the sparse kernel; dense gets as many, to be fair.
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Comparison:
    """The dense and the sparse video in [0, 1], what is to be said about them, and what calls and blocks did."""

    dense: Float[np.ndarray, "t h w 3"]
    sparse: Float[np.ndarray, "t h w 3"]
    report: dict[str, Any]
    records: list[CallRecord]
    frames_per_second: int = 16
    blocks: list[BlockRecord] = field(default_factory=list)


def compare(
    loaded: LoadedPipeline,
    method: Method | None,
    prompt: str,
    *,
    cache: Cache | None = None,
    progress: ProgressFunction | None = None,
    **options: Unpack[CallOptions],
) -> Comparison:
    """Generate densely (stock pipeline, torch SDPA) and with a method, a cache or both, from one seed.

    Seconds are those of the denoising loop, both warm. InputError on a geometry that the model cannot make, or a cache
    that does not fit it.
    """
    seed, call = call_arguments(loaded, prompt, **options)
    check_caches(loaded, [cache], call["num_inference_steps"])
    report_step = step_counter(progress, 2 * call["num_inference_steps"] + WARMUP_STEPS * (1 if method is None else 2))
    warm_up(loaded, method, call, seed, report_step, cache)
    dense, sparse = (
        generate_call(loaded, call, seed, way, cache=rest, progress=lambda _, message: report_step(message))
        for way, rest in ((None, None), (method, cache))
    )
    return contrast(loaded, dense, sparse)


def contrast(loaded: LoadedPipeline, dense: Generation, sparse: Generation) -> Comparison:
    """Return what two generations of one prompt and seed say about each other."""
    report = {name: value for name, value in sparse.report.items() if name != "seconds"}
    seconds = {"dense_seconds": dense.report["seconds"], "sparse_seconds": sparse.report["seconds"]}
    report |= {
        **seconds,
        "speedup": seconds["dense_seconds"] / seconds["sparse_seconds"],
        **attention_times(sparse.records, loaded.device, loaded.dtype),
        "psnr_db": psnr(sparse.frames, dense.frames),
        "ssim": ssim(sparse.frames, dense.frames),
    }
    return Comparison(dense.frames, sparse.frames, report, sparse.records, sparse.frames_per_second, sparse.blocks)


def check_caches(loaded: LoadedPipeline, caches: Iterable[Cache | None], steps: int) -> None:
    """Raise InputError, before anything is generated, if a cache does not fit the model or so many steps."""
    disable(loaded.pipeline)
    for cache in caches:
        with attached(loaded, None, cache, steps):
            pass
        # A scheduler of second order tells its own number of steps, when it runs.
        if isinstance(cache, Policy) and getattr(loaded.pipeline.scheduler, "order", 1) == 1:
            cache.check_schedule(steps)


def warm_up(
    loaded: LoadedPipeline,
    method: Method | None,
    call: dict[str, Any],
    seed: int,
    report_step: Callable[[str], None],
    cache: Cache | None = None,
) -> None:
    """Run both ways shortly, so that neither is timed while it compiles, builds or allocates.

    A cache has nothing to build, but a preset chooses by it. A method of None has nothing to run.
    """
    short_call = call | {"num_inference_steps": WARMUP_STEPS}
    disable(loaded.pipeline)
    run(loaded, short_call, seed, "dense warm-up", report_step, output_type="latent")
    if method is None:
        return
    with enabled(loaded.pipeline, _without_dense_steps(method, cache, call["num_inference_steps"])):
        run(loaded, short_call, seed, "sparse warm-up", report_step, output_type="latent")


def _without_dense_steps(method: Method, cache: Cache | None, steps: int) -> Method:
    if isinstance(method, Preset):
        computed = cache.computed_steps if isinstance(cache, Policy) else None
        return replace(method, computed_steps=computed, warms_up_for=steps)
    return method.without_dense_steps() if isinstance(method, Scheduled) else method

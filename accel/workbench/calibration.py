"""A table of blocks for a model: measured on a few prompts, chosen under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from accel.attach import disable
from accel.caching.calibration import Measuring, choose
from accel.caching.hook import install_cache, remove_cache
from accel.caching.policy import step_count
from accel.caching.table import BlockTable
from accel.errors import InputError
from accel.models.progress import ProgressHook, install_hook, remove_hook
from accel.models.session import Session
from accel.workbench.generation import CallOptions, call_arguments, run
from accel.workbench.loading import LoadedPipeline


def calibrate(
    loaded: LoadedPipeline,
    prompts: Sequence[str],
    budget: float,
    options: CallOptions,
    *,
    ages: int = 3,
    order: int = 0,
    warmup: float = 1,
    report: Callable[[str], None] = lambda message: None,
) -> BlockTable:
    """Return the table that computes a share `budget` of all blocks and errs least on these prompts.

    A step of sigma from a to b moves the latents by (b - a) times the output, so errors are weighed by its square.
    Costs some (ages + 1) blocks / 2 generations a prompt. InputError on a budget that cannot be kept.
    """
    if not 0 < budget <= 1:
        raise InputError(f"budget is {budget:g}; give the share of blocks to compute, above 0 and at most 1")
    call_steps = call_arguments(loaded, "", **options)[1]["num_inference_steps"]
    errors = sum(_measure(loaded, prompt, options, ages, order, report) for prompt in prompts)
    assert isinstance(errors, np.ndarray)
    words = choose(errors, budget, max(1, step_count(warmup, call_steps)))
    return BlockTable(type(loaded.transformers[0]).__name__, words, order)


def _measure(
    loaded: LoadedPipeline, prompt: str, options: CallOptions, ages: int, order: int, report: Callable[[str], None]
) -> Float[np.ndarray, "steps blocks ages"]:
    """Return the squared error of the latents for each step, block and age, infinite where nothing was measured."""
    seed, call = call_arguments(loaded, prompt, **options)
    disable(loaded.pipeline)
    measuring = []
    for transformer in loaded.transformers:
        session = Session(None, 0)
        measuring.append(Measuring(transformer, loaded.adapter, session.denoising, ages, order))
        install_cache(transformer, measuring[-1])
        install_hook(transformer, ProgressHook(session, loaded.adapter, loaded.pipeline))
    try:
        run(loaded, call, seed, f"calibration: {prompt}", report, output_type="latent")
    finally:
        for transformer in loaded.transformers:
            remove_hook(transformer)
            remove_cache(transformer)
    errors = np.full((call["num_inference_steps"], measuring[0].depth, ages + 1), np.inf)
    for each in measuring:
        for key, error in each.errors.items():
            errors[key] = float(error)
    return errors * _weights(loaded.pipeline, len(errors))[:, None, None]


def _weights(pipeline: Any, steps: int) -> Float[np.ndarray, " steps"]:
    """Return the square of each step's part of the way, equal where the scheduler has no sigmas."""
    sigmas = getattr(pipeline.scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != steps + 1:
        return np.ones(steps)
    return sigmas.double().cpu().diff().square().numpy()

"""A table of blocks for a model: measured on a few prompts, chosen under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from accel.attach import disable, enabled
from accel.caching.calibration import Measuring, check_budget, choose
from accel.caching.hook import install_cache, remove_cache
from accel.caching.policy import step_count
from accel.caching.table import BlockTable, Table
from accel.errors import InputError
from accel.models.progress import ProgressHook, install_hook, remove_hook
from accel.models.session import Session
from accel.workbench.generation import CallOptions, call_arguments, run
from accel.workbench.loading import LoadedPipeline


@dataclass(frozen=True)
class Measure:
    """How errors are measured.

    Something is reused for at most `ages` steps, by a forecast of that `order`; `group` blocks rest together, None is
    all. At `probes` steps, and in between by interpolation, it is seen what an error becomes by the end.
    """

    ages: int = 3
    order: int = 0
    group: int | None = None
    probes: int = 8


def calibrate(
    loaded: LoadedPipeline,
    prompts: Sequence[str],
    budget: float,
    options: CallOptions,
    measure: Measure | None = None,
    *,
    warmup: float = 1,
    report: Callable[[str], None] = lambda message: None,
) -> BlockTable:
    """Return the table that computes a share `budget` of all blocks and errs least on these prompts.

    Costs a generation for each probe and, for each prompt, some (ages + 1) groups / 2. InputError on a budget that
    cannot be kept, a model without known blocks, or a schedule of another number of steps than asked for.
    """
    measure = measure or Measure()
    if not 0 < budget <= 1:
        raise InputError(f"budget is {budget:g}; give the share of blocks to compute, above 0 and at most 1")
    depth, size = _depth(loaded), measure.group or _depth(loaded)
    steps = call_arguments(loaded, prompts[0], **options)[1]["num_inference_steps"]
    computed = max(1, step_count(warmup, steps))
    check_budget(budget, computed, steps, depth)
    each = [_errors(loaded, prompt, options, measure, report) for prompt in prompts]
    gains = _gains(loaded, prompts[0], options, each[0], measure, report)
    errors = np.stack(each).sum(axis=0)
    sizes = [min(size, depth - start) for start in range(0, depth, size)]
    words = choose(errors * gains[:, None, None], budget, computed, sizes)
    whole = ("".join(letter * count for letter, count in zip(word, sizes, strict=True)) for word in words)
    return BlockTable(type(loaded.transformers[0]).__name__, tuple(whole), measure.order)


def _errors(
    loaded: LoadedPipeline, prompt: str, options: CallOptions, measure: Measure, report: Callable[[str], None]
) -> Float[np.ndarray, "steps groups ages"]:
    """Return the squared error of a step's latents, infinite where nothing was measured.

    A step of sigma from a to b moves the latents by (b - a) times the output.
    """
    seed, call = call_arguments(loaded, prompt, **options)
    disable(loaded.pipeline)
    measuring = []
    for transformer in loaded.transformers:
        session = Session(None, 0)
        ways = measure.ages, measure.order, measure.group, call["num_inference_steps"]
        measuring.append(Measuring(transformer, loaded.adapter, session.denoising, *ways))
        install_cache(transformer, measuring[-1])
        install_hook(transformer, ProgressHook(session, loaded.adapter, loaded.pipeline))
    try:
        run(loaded, call, seed, f"errors: {prompt}", report, output_type="latent")
    finally:
        for transformer in loaded.transformers:
            remove_hook(transformer)
            remove_cache(transformer)
    errors = np.full((call["num_inference_steps"], len(measuring[0].groups), measure.ages + 1), np.inf)
    for each in measuring:
        for key, error in each.errors.items():
            errors[key] = float(error)
    return errors * _weights(loaded.pipeline, len(errors))[:, None, None]


def _gains(
    loaded: LoadedPipeline,
    prompt: str,
    options: CallOptions,
    errors: Float[np.ndarray, "steps groups ages"],
    measure: Measure,
    report: Callable[[str], None],
) -> Float[np.ndarray, " steps"]:
    """Return how much the square of a step's error on this prompt has grown by the end: early ones grow most."""
    seed, call = call_arguments(loaded, prompt, **options)
    steps, depth = len(errors), _depth(loaded)
    made = np.sqrt(errors[:, :, 1]).sum(axis=1) ** 2  # infinite where nothing can be reused
    known = np.flatnonzero(np.isfinite(made) & (made > 0))
    if len(known) == 0:
        return np.ones(steps)

    def latents(resting: int | None) -> Any:
        words = tuple(("r" if step == resting else "c") * depth for step in range(steps))
        with enabled(loaded.pipeline, None, Table(BlockTable("", words, measure.order))):
            label = "errors" if resting is None else f"what an error of step {resting + 1} becomes"
            return torch.as_tensor(run(loaded, call, seed, label, lambda message: None, output_type="latent")[0])

    exact = latents(None)
    probed = known[np.unique(np.linspace(0, len(known) - 1, measure.probes).round().astype(int))]
    grown = []
    for step in probed:
        report(f"what an error of step {step + 1} of {steps} becomes")
        grown.append(float((latents(int(step)) - exact).double().square().sum()) / made[step])
    return np.exp(np.interp(np.arange(steps), probed, np.log(np.maximum(grown, np.finfo(float).tiny))))


def _depth(loaded: LoadedPipeline) -> int:
    """Return the number of blocks; InputError where accel knows none."""
    if loaded.adapter.blocks is None:
        name = type(loaded.transformers[0]).__name__
        raise InputError(
            f"{loaded.name!r} is a {name}, which has no block stack that accel knows, and a table is one of blocks: "
            "give another model"
        )
    return len(loaded.adapter.blocks(loaded.transformers[0]))


def _weights(pipeline: Any, steps: int) -> Float[np.ndarray, " steps"]:
    """Return the square of each step's part of the way, equal where the scheduler has no sigmas."""
    sigmas = getattr(pipeline.scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != steps + 1:
        return np.ones(steps)
    return sigmas.double().cpu().diff().square().numpy()

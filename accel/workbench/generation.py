"""One video made by a pipeline, densely or with a method, and the time of its denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from accel.attach import disable, enabled
from accel.errors import InputError
from accel.handle import Handle
from accel.methods.method import Method
from accel.models.records import BlockRecord, CallRecord, block_letters, block_shares, summarize
from accel.workbench.conditions import conditions
from accel.workbench.facts import facts
from accel.workbench.loading import LoadedPipeline
from accel.workbench.metrics import synchronized_time
from accel.workbench.prompt import warn_unknown_words
from accel.workbench.their_caches import Cache, TheirCache

# Called with the share of the work that is done, in [0, 1], and what was done last.
ProgressFunction = Callable[[float, str], None]
SEED_LIMIT = 2**63


class CallOptions(TypedDict, total=False):
    """What can be asked of a generation; None or absent stands for the model's default, seed 0."""

    steps: int | None
    seed: int
    frames: int | None
    height: int | None
    width: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    image: Path | None


@dataclass(frozen=True)
class Generation:
    """One video in [0, 1], the facts about its making, and its attention calls and what its blocks did.

    There are no calls without a method, and nothing of blocks without a cache.
    """

    frames: Float[np.ndarray, "t h w 3"]
    report: dict[str, Any]
    records: list[CallRecord]
    frames_per_second: int = 16
    blocks: list[BlockRecord] = field(default_factory=list)


def generate(
    loaded: LoadedPipeline,
    prompt: str,
    method: Method | None = None,
    *,
    cache: Cache | None = None,
    progress: ProgressFunction | None = None,
    **options: Unpack[CallOptions],
) -> Generation:
    """Make one video with a method, a cache or both, or densely; seconds are of the denoising loop, not warm."""
    seed, call = call_arguments(loaded, prompt, **options)
    return generate_call(loaded, call, seed, method, cache=cache, progress=progress)


def generate_call(
    loaded: LoadedPipeline,
    call: dict[str, Any],
    seed: int,
    method: Method | None = None,
    *,
    cache: Cache | None = None,
    progress: ProgressFunction | None = None,
) -> Generation:
    """Make the video of a pipeline's arguments, which `call_arguments` has checked and warned about."""
    report_step = step_counter(progress, call["num_inference_steps"])
    report = facts(loaded, method, call, seed, cache)
    disable(loaded.pipeline)
    is_dense = method is None and cache is None
    with attached(loaded, method, cache, call["num_inference_steps"]) as handle:
        frames, seconds = run(loaded, call, seed, "dense" if is_dense else "sparse", report_step)
    records, blocks = ([], []) if handle is None else (handle.stats(), handle.blocks())
    report |= {"seconds": seconds}
    if handle is not None and handle.chosen is not None:
        report["chosen"] = handle.chosen
    if not is_dense:
        report |= {**_sparsity(records), "memory_bytes": None if handle is None else handle.peak_memory_bytes()}
    if blocks:
        report |= {f"blocks_{kind}": share for kind, share in block_shares(blocks).items()}
        report["blocks"] = block_letters(blocks)
    return Generation(frames, report, records, loaded.adapter.frames_per_second, blocks)


@contextmanager
def attached(loaded: LoadedPipeline, method: Method | None, cache: Cache | None, steps: int) -> Iterator[Handle | None]:
    """Attach what there is to attach for a `with` block; None where nothing of it is ours."""
    theirs = cache.enabled(loaded.pipeline, steps) if isinstance(cache, TheirCache) else nullcontext()
    ours = None if isinstance(cache, TheirCache) else cache
    with theirs, nullcontext() if method is None and ours is None else enabled(loaded.pipeline, method, ours) as handle:
        yield handle


def call_arguments(
    loaded: LoadedPipeline,
    prompt: str,
    steps: int | None = None,
    seed: int = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    image: Path | None = None,
) -> tuple[int, dict[str, Any]]:
    """Return the checked seed and arguments of the pipeline's call; warns of words that the model does not know."""
    given = {
        "num_inference_steps": steps,
        "num_frames": frames,
        "height": height,
        "width": width,
        "guidance_scale": guidance_scale,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if other := given.keys() - loaded.defaults.keys():
        raise InputError(f"{loaded.name} takes no {', '.join(sorted(other))}; leave it out")
    call = {**loaded.defaults, **given}
    loaded.check(call["num_frames"], call["height"], call["width"], call["num_inference_steps"])
    if not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed is {seed}; it must be at least 0 and below 2**63")
    warn_unknown_words(getattr(loaded.pipeline, "tokenizer", None), prompt)
    made_from = conditions(loaded.pipeline, image, negative_prompt, call["width"], call["height"])
    return seed, {"prompt": prompt, **call, **made_from}


def run(
    loaded: LoadedPipeline,
    call: dict[str, Any],
    seed: int,
    label: str,
    report_step: Callable[[str], None],
    output_type: str = "np",
) -> tuple[Any, float]:
    """Return the video (t h w 3) in [0, 1], and the seconds from the first transformer call to the last step's end.

    InputError if it is not finite. An `output_type` of latent spares the decoding.
    """
    pipeline, clock, steps = loaded.pipeline, [], call["num_inference_steps"]

    def start(module: torch.nn.Module, arguments: tuple) -> None:
        if not clock:
            clock.extend([synchronized_time(loaded.device)] * 2)

    def step_end(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        clock[1] = synchronized_time(loaded.device)
        report_step(f"{label} step {step + 1} of {steps}")
        if step + 1 == steps and not tensors["latents"].isfinite().all():
            raise InputError(f"the generated latents hold NaN or Inf in {loaded.dtype}; try --dtype float32")
        return tensors

    hooks = [transformer.register_forward_pre_hook(start) for transformer in loaded.transformers]
    # A generator on the CPU gives the same noise on every device.
    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        with _progress_label(pipeline, label):
            output = pipeline(**call, generator=generator, output_type=output_type, callback_on_step_end=step_end)
    finally:
        for hook in hooks:
            hook.remove()
    return output.frames[0], clock[1] - clock[0]


def step_counter(progress: ProgressFunction | None, total: int) -> Callable[[str], None]:
    """Return what is called with a message after each of `total` steps, and passes on the share that is done."""
    done = 0

    def report_step(message: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done / total, 1.0), message)

    return report_step


def _sparsity(records: list[CallRecord]) -> dict[str, float | int | None]:
    summary = summarize(records)
    return {name: summary[name] for name in ("density", "density_overall", "recall", "dense_steps", "planning_share")}


@contextmanager
def _progress_label(pipeline: Any, label: str) -> Iterator[None]:
    """Name diffusers' own progress bar for the time of one run."""
    before = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**{"desc": label, **before})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)

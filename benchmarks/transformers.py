"""Steps of whole video transformers with random weights: planning, kernel and rest of every method, beside dense.

A part of `benchmarks.gpu`. Times do not depend on weights, but for where a method's choice does: every method is asked
for one density here. Cross-attention, projections and MLPs are those of diffusers and the same in all rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import sdpa_kernel

import accel
from accel.methods.registry import METHODS
from benchmarks.cases import Cases
from benchmarks.dense import BACKENDS, backends_of, preferring
from benchmarks.rows import Row, origin
from benchmarks.timing import seconds_each

DENSITY = 0.25
STEPS = 10
WARM_STEPS = 2  # the first step of a method may only plan, the second runs the sparse kernel
TEXT_TOKENS = 512
FULL_DIFFERENCE = 0.05  # of the last latents, relative; rounding to bfloat16 grows from step to step


class Model(NamedTuple):
    """A published configuration of WanTransformer3DModel, and the latent grid (frames, height, width) of its videos."""

    name: str
    config: dict[str, Any]
    grid: tuple[int, int, int]


class Dense(NamedTuple):
    """What methods are compared with: the fastest dense attention, a step's seconds with each, and the result."""

    backend: str
    seconds: dict[str, float]
    latents: Tensor


PUBLISHED = dict(
    patch_size=(1, 2, 2), in_channels=16, out_channels=16, text_dim=4096, freq_dim=256, cross_attn_norm=True,
    qk_norm="rms_norm_across_heads", rope_max_seq_len=1024,
)  # fmt: skip
MODELS = [
    Model(
        "Wan 2.1 1.3B, 480p",
        PUBLISHED | dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30),
        (21, 60, 104),
    ),
    Model(
        "two layers of Wan 2.1 14B, 720p",
        PUBLISHED | dict(num_attention_heads=40, attention_head_dim=128, ffn_dim=13824, num_layers=2),
        (21, 90, 160),
    ),
]
TINY = [
    Model(
        "tiny",
        PUBLISHED | dict(text_dim=32, num_attention_heads=2, attention_head_dim=32, ffn_dim=64, num_layers=2),
        (5, 16, 16),
    ),
]


class Loop:
    """A transformer and a short denoising loop over it: a pipeline without text encoder and VAE."""

    def __init__(self, model: Model, device: str):
        torch.manual_seed(0)
        self.device, dtype = device, torch.bfloat16 if device == "cuda" else torch.float32
        # Attached methods read the progress from these two, as from those of a pipeline.
        self.transformer = build(model, device, dtype)
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.latents = torch.randn(1, model.config["in_channels"], *model.grid, device=device)
        self.text = torch.randn(1, TEXT_TOKENS, model.config["text_dim"], device=device, dtype=dtype)

    def run(self, steps: int) -> tuple[list[float], Tensor]:
        """Return each step's seconds and the latents of the end."""
        self.scheduler.set_timesteps(steps, device=self.device)
        latents = self.latents

        def step(t: Tensor) -> None:
            nonlocal latents
            velocity = self.transformer(latents.to(self.text.dtype), t.expand(1), self.text, return_dict=False)[0]
            latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]

        seconds = seconds_each([partial(step, t) for t in self.scheduler.timesteps], self.device)
        return seconds, latents

    @cached_property
    def dense(self) -> Dense:
        """The stock transformer under each dense SDPA that is here."""
        seconds, latents = {}, self.latents
        for name in backends_of(self.device):
            with suppress(RuntimeError), sdpa_kernel(BACKENDS[name]):
                self.run(1)
                times, latents = self.run(STEPS)
                seconds[name] = statistics.median(times)
        return Dense(min(seconds, key=lambda name: seconds[name]), seconds, latents)


def build(model: Model, device: str, dtype: torch.dtype) -> Any:
    """Return the transformer with random weights on the device, in `dtype` but for what diffusers keeps in float32."""
    with torch.device(device):
        transformer: Any = WanTransformer3DModel(**model.config)
    for name, parameter in transformer.named_parameters():
        if not set(name.split(".")) & set(transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return transformer.eval().requires_grad_(False)


def methods() -> dict[str, dict[str, Any]]:
    """Return every method with the options that put it at one density without warm-up."""
    options: dict[str, dict[str, Any]] = {name: {"density": DENSITY, "dense_steps": 0.0} for name in METHODS}
    options["sparse-vdit"]["tolerance"] = 9.0  # else random weights, which no pattern fits, leave its heads full
    # In the order of what one wants to know if the time is short.
    first = {name: options.pop(name) for name in ("svg-ear", "adaspa")}
    return first | {"full": {}} | {name: given for name, given in options.items() if name != "full"}


def measure(loop: Loop, method: str, options: dict[str, Any]) -> Row:
    """Return the row of a method's median step, what it was spent on, and of all steps with those that search."""
    dense = loop.dense
    handle = accel.enable(loop, method, **options)
    try:
        with preferring(dense.backend):
            loop.run(WARM_STEPS)
            seconds, latents = loop.run(STEPS)
        row = _parts(handle.stats(), seconds, _median_step(seconds))
        memory = handle.peak_memory_bytes() / 2**20
    finally:
        handle.disable()
    stock = dense.seconds[dense.backend]
    # Random weights tell nothing of quality: only of full attention must this be small.
    difference = ((latents - dense.latents).norm() / dense.latents.norm()).item()
    return row | {
        "method": method, "ms_steps": [each * 1e3 for each in seconds], "memory_megabytes": memory,
        "dense_backend": dense.backend, "ms_dense": stock * 1e3, "speedup": stock * 1e3 / row["ms_step"],
        "speedup_of_all": stock * STEPS / sum(seconds), "difference": difference,
        "ok": difference < (FULL_DIFFERENCE if row["density"] == 1 else float("inf")),
    }  # fmt: skip


def measure_dense(loop: Loop) -> Row:
    """Return the row of the stock transformer, taken apart by a method that leaves every call to it."""
    dense = loop.dense
    row = measure(loop, "full", {"dense_steps": 1.0}) | {
        "method": "dense", "ms_step": dense.seconds[dense.backend] * 1e3,
    }  # fmt: skip
    return row | {f"ms_{name}": seconds * 1e3 for name, seconds in dense.seconds.items()}


def _median_step(seconds: list[float]) -> int:
    """Return the step of median time after the first, which plans from nothing."""
    return sorted(range(1, len(seconds)), key=seconds.__getitem__)[len(seconds) // 2 - 1]


def _parts(records: list[Any], seconds: list[float], step: int) -> Row:
    """Return what one step's time was spent on, in milliseconds, and the density of its calls."""
    calls = [record for record in records if record.step == step]
    attention, planning = (sum(getattr(call, name) for call in calls) for name in ("seconds", "plan_seconds"))
    kinds = sorted({call.kind for call in calls})
    return {
        "ms_step": seconds[step] * 1e3, "ms_plan": planning * 1e3, "ms_kernel": (attention - planning) * 1e3,
        "ms_rest": (seconds[step] - attention) * 1e3, "calls": len(calls), "kinds": ", ".join(kinds),
        "density": sum(call.density for call in calls) / max(1, len(calls)),
    }  # fmt: skip


def run_model(cases: Cases, model: Model, device: str) -> None:
    """Run dense and every method on one transformer."""
    tokens = model.grid[0] * model.grid[1] * model.grid[2] // 4
    loops: list[Loop] = []  # built by the first case, so that it fails as one

    def measured(run: Callable[[Loop], Row]) -> Row:
        if not loops:
            loops.append(Loop(model, device))
        row = run(loops[0])
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        note = ", ".join(f"{part} {row[f'ms_{part}']:.3g}" for part in ("plan", "kernel", "rest"))
        return origin(device) | {"model": model.name, "tokens": tokens, "gigabytes": memory, "note": note} | row

    name = f"{model.name}, {tokens:,} tokens"
    cases.run(f"{name}, dense", lambda: measured(measure_dense))
    for method, options in methods().items():
        run = partial(measure, method=method, options=options)
        cases.run(f"{name}, {method}", lambda run=run: measured(run))


@torch.no_grad()
def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    seconds: Annotated[float, typer.Option(help="no case starts after that")] = 300.0,
    smoke: Annotated[bool, typer.Option(help="a tiny model on the CPU")] = False,
) -> None:
    """Measure and write rows."""
    device = "cpu" if smoke else "cuda"
    cases = Cases(json_file, device, seconds)
    for model in TINY if smoke else MODELS:
        run_model(cases, model, device)


if __name__ == "__main__":
    typer.run(main)

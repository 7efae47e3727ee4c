"""What a cache costs in which nothing rests: its hooks, and the changes that it measures, beside the stock pipeline.

Every round runs the denoising loop in each way, the stock one first; a row is the median over rounds of seconds against
the stock ones of the same round. Thresholds are so small that all is computed, but judged.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

import accel
from accel.workbench.generation import call_arguments, run
from accel.workbench.loading import LoadedPipeline, load_pipeline
from benchmarks.rows import Row, origin, show

PROMPT = "a large red circle moves left on a white background"
CACHES = ("table:every=1", "easy:threshold=1e-9", "dual-block:threshold=1e-9", "prune:threshold=1e-9")
WARM_STEPS = 2


def seconds_of(loaded: LoadedPipeline, call: dict[str, Any], cache: str | None) -> float:
    """Return the seconds of a denoising loop in which everything is computed; ValueError if something rested."""
    say = "stock" if cache is None else cache
    with nullcontext() if cache is None else accel.enabled(loaded.pipeline, None, cache=cache) as handle:
        seconds = run(loaded, call, 0, say, lambda message: None, output_type="latent")[1]
    kinds = set() if handle is None else {record.kind for record in handle.blocks()}
    if handle is not None and kinds != {"computed"}:
        raise ValueError(f"under {cache} blocks were {', '.join(kinds) or 'not seen'}; all must be computed")
    return seconds


def measure(loaded: LoadedPipeline, frames: int | None, steps: int, rounds: int) -> list[Row]:
    """Return a row a cache."""
    _, call = call_arguments(loaded, PROMPT, frames=frames, steps=steps)
    for cache in (None, *CACHES):
        seconds_of(loaded, call | {"num_inference_steps": WARM_STEPS}, cache)
    runs = [[seconds_of(loaded, call, cache) for cache in (None, *CACHES)] for _ in range(rounds)]
    facts = origin(loaded.device.type) | {
        "dtype": str(loaded.dtype).removeprefix("torch."), "frames": call["num_frames"], "steps": steps,
    }  # fmt: skip
    ratios = [[seconds / stock for seconds in ours] for stock, *ours in runs]
    return [
        facts
        | {"cache": cache, "stock_seconds": statistics.median(run[0] for run in runs)}
        | {"overhead": statistics.median(each) - 1, "least": min(each) - 1, "most": max(each) - 1, "rounds": rounds}
        for cache, each in zip(CACHES, zip(*ratios, strict=True), strict=True)
    ]


def main(
    frames: Annotated[int | None, typer.Option(help="frames of the video; default: the model's")] = None,
    steps: Annotated[int, typer.Option(min=1, help="denoising steps of a run")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="how often each way runs")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the rows")] = None,
) -> None:
    """Time the embedded model's denoising loop beneath each cache, with nothing resting."""
    loaded = load_pipeline(None, device, dtype)
    loaded.pipeline.set_progress_bar_config(disable=True)
    rows = measure(loaded, frames, steps, rounds)
    show(rows, ("cache", "stock_seconds", "overhead", "least", "most"), json_file)


if __name__ == "__main__":
    typer.run(main)

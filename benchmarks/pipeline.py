"""The shipped pipeline in all its ways, in one process: stock, compiled, in OpenVINO, and every method.

Each row stands beside a stock run of its own process. Of the seconds of its denoising loop `s_planning` went into the
decisions of sparse calls, `s_kernel` into attention, that of dense and refresh calls too, `s_correction` into what is
done about the rest after the kernel (svg-ear does it inside), and `s_rest` into everything else. Rows of a file are
kept: run again to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

import accel
from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.plan import Correction, Plan, Sparse
from accel.methods.method import Method, Scheduled
from accel.methods.registry import METHODS, from_text
from accel.models.records import CallRecord, summarize
from accel.workbench.generation import call_arguments, run
from accel.workbench.loading import LoadedPipeline, load_pipeline
from benchmarks.cases import Cases
from benchmarks.in_openvino import converted, has_openvino
from benchmarks.rows import Row, origin, show

PROMPT = "a large red circle moves left on a white background"
WARM_STEPS = 2  # the first step of a method may only plan, the second runs the sparse kernel
COLUMNS = (
    "case", "seconds", "speedup", "s_planning", "s_kernel", "s_correction", "s_rest", "density", "recall", "difference"
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How the transformer runs: with a method or without, compiled by torch or not, or in OpenVINO."""

    method: str | None = None
    compiled: bool = False
    openvino: bool = False

    def __str__(self) -> str:
        return ("OpenVINO" if self.openvino else self.method or "stock") + (" compiled" if self.compiled else "")


STOCK = Way()


@dataclass(frozen=True)
class Timed:
    """A method whose corrections are timed."""

    method: Method
    seconds: list[float] = field(default_factory=list)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the method's own plan, with a clock around its correction."""
        plan = self.method.plan(call, memory)
        if not isinstance(plan, Sparse) or plan.correction is None:
            return plan
        return replace(plan, correction=partial(self._correct, plan.correction))

    def _correct(self, correction: Correction, call: AttentionCall, out: Tensor, lse: Tensor) -> Tensor:
        start = time.perf_counter()
        corrected = correction(call, out, lse)
        self.seconds.append(time.perf_counter() - start)
        return corrected


class Generation(NamedTuple):
    """Seconds of a denoising loop by the clock and of all threads, its latents, and its attention calls, if noted."""

    seconds: float
    cpu_seconds: float
    latents: Tensor
    calls: list[CallRecord] = []
    correction: float = 0.0


class Ways:
    """One pipeline, and what it makes in each way; the stock latents are made once, before all others."""

    def __init__(self, loaded: LoadedPipeline, options: Row, density: float, dense_steps: float):
        self.loaded = loaded
        _, self.call = call_arguments(loaded, PROMPT, **options)
        self.shares = {"density": density, "dense_steps": dense_steps}
        self.made_stock = self.make(STOCK)

    def row(self, way: Way) -> Row:
        """Return the seconds of a way, what they were spent on, and how far its latents are from stock ones."""
        stock = self.made_stock
        made = stock if way == STOCK else self.make(way)
        difference = ((made.latents - stock.latents).norm() / stock.latents.norm()).item()
        return origin("cpu") | {
            "tokens": made.calls[0].shape[2] if made.calls else None,
            "method": way.method, "compiled": way.compiled, "openvino": way.openvino, "seconds": made.seconds,
            "stock_seconds": stock.seconds, "speedup": stock.seconds / made.seconds,
            "cpu_seconds": made.cpu_seconds, "stock_cpu_seconds": stock.cpu_seconds, "difference": difference,
        } | _parts(made)  # fmt: skip

    def make(self, way: Way) -> Generation:
        """Make the latents in one way, warm."""
        with self._compiled(way.compiled), ExitStack() as stack:
            if way.openvino:
                stack.enter_context(converted(self.loaded.transformers[0], self._example()))
            if way.method is None:
                self._run(WARM_STEPS)
                return self._run()
            method = from_text(way.method, **({} if way.method == "full" else self.shares))
            sparse = method.without_dense_steps() if isinstance(method, Scheduled) else method
            with accel.enabled(self.loaded.pipeline, sparse):
                self._run(WARM_STEPS)
            timed = Timed(method)
            with accel.enabled(self.loaded.pipeline, timed) as handle:
                return self._run()._replace(calls=handle.stats(), correction=sum(timed.seconds))

    def _run(self, steps: int | None = None) -> Generation:
        call = self.call | ({} if steps is None else {"num_inference_steps": steps})
        start = time.process_time()
        latents, seconds = run(self.loaded, call, 0, "", lambda message: None, output_type="latent")
        return Generation(seconds, time.process_time() - start, latents)

    @contextmanager
    def _compiled(self, wanted: bool) -> Iterator[None]:
        """Compile the blocks for a `with` block."""
        if wanted:
            torch.compiler.reset()
            self.loaded.transformers[0].compile_repeated_blocks()
        try:
            yield
        finally:
            for module in self.loaded.transformers[0].modules():
                module._compiled_call_impl = None

    def _example(self) -> dict[str, Tensor]:
        """Return what the pipeline gives to its transformer."""
        seen: dict[str, Tensor] = {}
        hook = self.loaded.transformers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        self._run(1)
        hook.remove()
        return seen


def _parts(made: Generation) -> Row:
    if not made.calls:
        return {}
    facts = summarize(made.calls)
    attention = sum(call.seconds for call in made.calls)
    planning = sum(call.plan_seconds for call in made.calls if call.kind == "sparse")
    return {
        "s_planning": planning, "s_kernel": attention - planning - made.correction, "s_correction": made.correction,
        "s_rest": made.seconds - attention, "density": facts["density"], "recall": facts["recall"],
    }  # fmt: skip


def ways(only: str) -> list[Way]:
    """Return the ways with these names, or all: OpenVINO where it is installed, every method eager and compiled."""
    methods = ["full", *(name for name in METHODS if name != "full")]
    made = [STOCK, Way(compiled=True), Way(openvino=True)]
    made += [Way(method, compiled) for compiled in (False, True) for method in methods]
    names = [name.strip() for name in only.split(",")] if only else [str(way) for way in made]
    unknown = set(names) - {str(way) for way in made}
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)} are no rows; accepted: {', '.join(map(str, made))}")
    return [way for way in made if str(way) in names and (not way.openvino or has_openvino("cpu"))]


def main(
    model: Annotated[str | None, typer.Option(help="folder of a pipeline of Wan's class; default: shipped")] = None,
    only: Annotated[str, typer.Option(help="rows, as `OpenVINO,svg-ear compiled`; default: all")] = "",
    density: Annotated[float, typer.Option(help="of every method but full")] = 0.25,
    dense_steps: Annotated[float, typer.Option(help="share of the steps, from the first, kept dense")] = 0.1,
    steps: Annotated[int | None, typer.Option(help="of denoising; default: the model's own")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = "auto",
    seconds: Annotated[float, typer.Option(help="no row starts after that")] = 3600.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="rows; a run goes on where one stopped")] = None,
) -> None:
    """Print a table of all ways, and write the rows as JSON."""
    end = time.monotonic() + seconds
    loaded = load_pipeline(model, "cpu", dtype)
    loaded.pipeline.set_progress_bar_config(disable=True)
    setting: Row = {
        "steps": steps or loaded.defaults["num_inference_steps"], "dtype": str(loaded.dtype).removeprefix("torch."),
        "density_asked": density, "dense_share": dense_steps,
    }  # fmt: skip
    cases = Cases(json_file, "cpu", float("inf"), setting)
    cases.rows = [row for row in cases.rows if "error" not in row]  # what was stopped is tried again
    todo = ways(only)
    done = {row["case"] for row in cases.rows}
    if any(str(way) not in done for way in todo):
        made = Ways(loaded, {"steps": steps}, density, dense_steps)
        for way in todo:
            if time.monotonic() < end:
                cases.run(str(way), _measure(made, way))
    show(cases.rows, COLUMNS)


def _measure(made: Ways, way: Way) -> Callable[[], Row]:
    return lambda: made.row(way)


if __name__ == "__main__":
    typer.run(main)

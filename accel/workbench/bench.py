"""Methods and caches on the same videos: one dense run a prompt and seed, then every case."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.errors import InputError
from accel.files import replacing
from accel.methods import registry as method_registry
from accel.methods.method import Method
from accel.methods.registry import PRESET
from accel.workbench.comparison import contrast, warm_up
from accel.workbench.facts import facts, finite
from accel.workbench.generation import CallOptions, Generation, call_arguments, generate
from accel.workbench.loading import LoadedPipeline
from accel.workbench.their_caches import Cache, TheirCache, printed_ratios
from accel.workbench.their_caches import from_text as cache_from_text

# Generations spent on finding the option that gives a density; a share of TOLERANCE off it is close enough.
TRIALS = 3
TOLERANCE = 0.05
FIXED = "dense", PRESET
# What a row depends on beside its case, prompt and seed: a run with another of these does not take it for its own.
SETTING = "model tokens frames height width steps guidance_scale dtype device threads torch diffusers".split()
KEPT = """model method density_asked density_option dense_share prompt seed tokens frames height width steps dense_steps
guidance_scale dtype device threads torch diffusers date sparse_backend dense_seconds sparse_seconds speedup
attention_dense_seconds attention_sparse_seconds attention_speedup planning_share memory_bytes density density_overall
recall psnr_db ssim chosen cache blocks_computed blocks_reused blocks_skipped blocks_narrow blocks"""
ROW = {"method", "density_asked", "dense_share"}  # what every row has


@dataclass(frozen=True)
class Case:
    """A method at a density (measured, of its sparse calls) with a share of dense warm-up steps, and a cache.

    Method and cache may have options, as their registries' `from_text` reads them. The method is `dense` where a cache
    stands alone, the cache `none` without one. `preset` chooses density and warm-up itself.
    """

    method: str
    density: float
    dense_steps: float
    cache: str = "none"

    def __str__(self) -> str:
        varied = f"{self.method} at density {self.density:g}, {self.dense_steps:g} dense"
        method = {"dense": "", PRESET: PRESET}.get(self.method, varied)
        cache = "" if self.cache == "none" else f"cache {self.cache}"
        return " with ".join(filter(None, (method, cache)))


def cases(
    methods: Iterable[str],
    densities: Iterable[float],
    dense_steps: Iterable[float],
    caches: Iterable[str] = ("none",),
) -> list[Case]:
    """Return every combination; InputError names what is not known, or a share that cannot be.

    Dense attention and a preset have no density to vary; dense attention is a case only with a cache.
    """
    made = [Case(*values) for values in itertools.product(methods, densities, dense_steps, caches)]
    made = [case if case.method not in FIXED else Case(case.method, 1.0, 0.0, case.cache) for case in made]
    for case in made:
        try:
            method_of(case, case.density)
            cache_of(case.cache)
        except ValueError as error:
            raise InputError(str(error)) from error
    chosen = [case for case in dict.fromkeys(made) if (case.method, case.cache) != ("dense", "none")]
    if not chosen:
        raise InputError("dense without a cache is what the others are compared with; give another method, or caches")
    return chosen


class Rows:
    """The rows of a benchmark in a JSON file, written one by one; a second run adds what is missing."""

    def __init__(self, file: Path | None):
        self.file = file
        self.rows: list[dict[str, Any]] = []
        if file is not None and file.is_file():
            try:
                self.rows = json.loads(file.read_text())
            except ValueError as error:
                raise InputError(f"{file} is not JSON: {error}; move it away or give another --json") from error
            if not isinstance(self.rows, list) or not all(
                isinstance(row, dict) and ROW <= row.keys() for row in self.rows
            ):
                raise InputError(f"{file} holds no rows of accel bench; move it away or give another --json")
        self.rows = [{"cache": "none", **row} for row in self.rows]  # older rows know of no caches

    def within(self, setting: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a setting; what an old row does not say is taken to fit."""
        return [row for row in self.rows if all(row.get(name, value) == value for name, value in setting.items())]

    def find(self, case: Case, prompt: str, seed: int, setting: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a case, prompt, seed and setting, if it is there."""
        wanted = {
            "method": case.method,
            "density_asked": case.density,
            "dense_share": case.dense_steps,
            "cache": case.cache,
        }
        return next(iter(self.within({**setting, **wanted, "prompt": prompt, "seed": seed})), None)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        if self.file is None:
            return
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([finite(row) for row in self.rows], indent=1, allow_nan=False) + "\n")


def run_bench(
    loaded: LoadedPipeline,
    chosen: Sequence[Case],
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows: Rows,
    options: CallOptions,
    report: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Fill `rows` and return those of this setting; seconds are warm, and dense runs just before its sparse ones."""
    setting = setting_of(loaded, options)
    calibrated: dict[Case, float] = {}
    for seed, prompt in itertools.product(seeds, prompts):  # a run that is stopped has seen as many prompts as it can
        missing = [case for case in chosen if rows.find(case, prompt, seed, setting) is None]
        if not missing:
            continue
        call_options: CallOptions = {**options, "seed": seed}
        report(f"dense, seed {seed}: {prompt}")
        dense = _warm_dense(loaded, prompt, call_options, calibrated, missing, report)
        names = dict.fromkeys(case.cache for case in missing)
        caches = {name: with_ratios(loaded, cache_of(name), prompt, call_options) for name in names}
        for case in missing:
            report(f"{case}, seed {seed}: {prompt}")
            option, cache = calibrated[_alone(case)], caches[case.cache]
            rows.add(_row(loaded, case, option, cache, dense, prompt, call_options))
    return rows.within(setting)


def setting_of(loaded: LoadedPipeline, options: CallOptions) -> dict[str, Any]:
    """Return what all rows of a run have in common."""
    seed, call = call_arguments(loaded, "", **options)
    known = facts(loaded, None, call, seed)
    return {name: known[name] for name in SETTING}


def _warm_dense(
    loaded: LoadedPipeline,
    prompt: str,
    options: CallOptions,
    calibrated: dict[Case, float],
    missing: Sequence[Case],
    report: Callable[[str], None],
) -> Generation:
    """Calibrate the cases met for the first time, which warms them up, and make the dense video, warm as well."""
    if not calibrated:
        seed, call = call_arguments(loaded, prompt, **options)
        warm_up(loaded, method_of(missing[0], missing[0].density), call, seed, lambda message: None)
    for case in map(_alone, missing):
        if case.method == "dense":
            calibrated[case] = case.density
        elif case not in calibrated:
            report(f"calibrating {case.method} to density {case.density:g}")
            calibrated[case] = calibrate(loaded, case, prompt, options)
    return generate(loaded, prompt, **options)


def method_of(case: Case, density: float) -> Method | None:
    """Return the method object of a case with its density option set to `density`, None for dense."""
    if case.method in FIXED:
        return None if case.method == "dense" else method_registry.from_text(case.method)
    return method_registry.from_text(case.method, density=density, dense_steps=case.dense_steps)


def cache_of(name: str) -> Cache | None:
    """Return the cache of a name with its options, None for none."""
    return None if name == "none" else cache_from_text(name)


def with_ratios(loaded: LoadedPipeline, cache: Cache | None, prompt: str, options: CallOptions) -> Cache | None:
    """Return the cache; diffusers' MagCache with the ratios of one generation, which it does not run without."""
    if not isinstance(cache, TheirCache) or cache.name != "MagCache" or "mag_ratios" in cache.options:
        return cache
    ratios: list[float] = []
    with printed_ratios(ratios):
        generate(loaded, prompt, cache=TheirCache("MagCache", {"calibrate": True}), **options)
    return TheirCache("MagCache", {**cache.options, "mag_ratios": ratios})


def _alone(case: Case) -> Case:
    """Return a case without its cache: what rests changes no density."""
    return dataclasses.replace(case, cache="none")


def calibrate(loaded: LoadedPipeline, case: Case, prompt: str, options: CallOptions) -> float:
    """Return the density option with which the measured density of the sparse calls is the one asked for.

    Methods keep text, whole clusters or a full head beyond their budget: only measured densities compare.
    """
    option, tried = case.density, {}
    for _ in range(TRIALS):
        measured = generate(loaded, prompt, method_of(case, option), **options).report["density"]
        if measured is None or case.method == PRESET:  # nothing was sparse, or nothing can be set
            return option
        tried[option] = abs(measured / case.density - 1)
        if tried[option] <= TOLERANCE:
            break
        option = min(1.0, max(option * case.density / measured, case.density / 8))
    return min(tried, key=lambda option: tried[option])


def _row(
    loaded: LoadedPipeline,
    case: Case,
    option: float,
    cache: Cache | None,
    dense: Generation,
    prompt: str,
    options: CallOptions,
) -> dict[str, Any]:
    sparse = generate(loaded, prompt, method_of(case, option), cache=cache, **options)
    report = contrast(loaded, dense, sparse).report
    report |= {
        "method": case.method,
        "density_asked": case.density,
        "density_option": option,
        "dense_share": case.dense_steps,
        "cache": case.cache,
    }
    return {name: report.get(name) for name in KEPT.split()}


def means(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row a case: its mean of each named figure, and over how many generations."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        key = row["method"], row["density_asked"], row["dense_share"], row["cache"]
        groups.setdefault(key, []).append(row)
    return [
        {"method": method, "density_asked": density, "dense_share": share, "cache": cache, "count": len(group)}
        | {name: _mean([row.get(name) for row in group]) for name in names}
        for (method, density, share, cache), group in groups.items()
    ]


def _mean(values: Sequence[float | str | None]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None

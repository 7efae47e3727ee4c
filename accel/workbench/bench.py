"""Methods and caches on the same videos: one dense run a prompt and seed, then every case."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from accel.methods.registry import PRESET
from accel.workbench.cases import Case, cache_of, method_of
from accel.workbench.comparison import check_caches, contrast, warm_up
from accel.workbench.generation import CallOptions, Generation, call_arguments, generate
from accel.workbench.loading import LoadedPipeline
from accel.workbench.rows import Rows, row_of, setting_of
from accel.workbench.their_caches import Cache, TheirCache, digest_of, printed_ratios

# Generations spent on finding the option that gives a density; a share of TOLERANCE off it is close enough.
TRIALS = 3
TOLERANCE = 0.05


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
    read = {case.cache: cache_of(case.cache) for case in chosen}
    digests = {name: digest_of(cache) for name, cache in read.items()}
    calibrated: dict[Case, float] = {}
    for seed, prompt in itertools.product(seeds, prompts):  # a run that is stopped has seen as many prompts as it can
        missing = [case for case in chosen if rows.find(case, prompt, seed, setting, digests[case.cache]) is None]
        if not missing:
            continue
        call_options: CallOptions = {**options, "seed": seed}
        if not calibrated:
            check_caches(loaded, [_without_ratios(cache) for cache in read.values()], setting["steps"])
        report(f"dense, seed {seed}: {prompt}")
        dense = _warm_dense(loaded, prompt, call_options, calibrated, missing, report)
        names = dict.fromkeys(case.cache for case in missing)
        caches = {name: with_ratios(loaded, read[name], prompt, call_options) for name in names}
        dense_video = rows.keep(dense, prompt, seed, "dense")
        for case in missing:
            report(f"{case}, seed {seed}: {prompt}")
            option = calibrated[_alone(case)]
            sparse = generate(loaded, prompt, method_of(case, option), cache=caches[case.cache], **call_options)
            videos = {"video": rows.keep(sparse, prompt, seed, str(case)), "dense_video": dense_video}
            made = row_of(contrast(loaded, dense, sparse).report, case, option)
            rows.add(made | videos | {"cache_digest": digests[case.cache]})
    return rows.current(setting, digests)


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


def with_ratios(loaded: LoadedPipeline, cache: Cache | None, prompt: str, options: CallOptions) -> Cache | None:
    """Return the cache; diffusers' MagCache with the ratios of one generation, which it does not run without."""
    without = _without_ratios(cache)
    if without is cache or not isinstance(cache, TheirCache):
        return cache
    ratios: list[float] = []
    with printed_ratios(ratios):
        generate(loaded, prompt, cache=TheirCache("MagCache", {"calibrate": True}), **options)
    return TheirCache("MagCache", {**cache.options, "mag_ratios": ratios})


def _without_ratios(cache: Cache | None) -> Cache | None:
    """Return the cache; a MagCache without ratios as one that is to measure them."""
    if not isinstance(cache, TheirCache) or cache.name != "MagCache" or "mag_ratios" in cache.options:
        return cache
    return TheirCache("MagCache", {**cache.options, "calibrate": True})


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

"""The rows of a benchmark: a JSON file that a later run goes on with, and their means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accel.errors import InputError
from accel.files import replacing
from accel.workbench.cases import Case
from accel.workbench.facts import facts, finite
from accel.workbench.generation import CallOptions, Generation, call_arguments
from accel.workbench.kept_videos import KeptVideos
from accel.workbench.loading import LoadedPipeline

# What a row depends on beside its case, prompt and seed: a run with another of these does not take it for its own.
SETTING = "model tokens frames height width steps guidance_scale dtype device threads torch diffusers".split()
KEPT = """model method density_asked density_option dense_share prompt seed tokens frames height width steps dense_steps
guidance_scale dtype device threads torch diffusers date sparse_backend dense_seconds sparse_seconds speedup
attention_dense_seconds attention_sparse_seconds attention_speedup planning_share memory_bytes density density_overall
recall psnr_db ssim chosen cache cache_digest blocks_computed blocks_reused blocks_skipped blocks_narrow blocks video
dense_video"""
ROW = {"method", "density_asked", "dense_share"}  # what every row has


class Rows:
    """The rows of a benchmark in a JSON file, written one by one; a second run adds what is missing.

    What makes a new row leaves its videos in the folder `videos`, if there is one.
    """

    def __init__(self, file: Path | None, videos: Path | None = None):
        self.file = file
        self.videos = None if videos is None else KeptVideos(videos)
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

    def current(self, setting: dict[str, Any], digests: dict[str, str | None]) -> list[dict[str, Any]]:
        """Return the rows of a setting; where a cache has read other files since, as `digests` say, only the new ones.

        Of caches that are not in `digests` the latest count.
        """
        rows = self.within(setting)
        latest = {row["cache"]: row["cache_digest"] for row in rows if row.get("cache_digest") is not None} | digests
        return [row for row in rows if row.get("cache_digest") in (None, latest.get(row["cache"]))]

    def find(
        self, case: Case, prompt: str, seed: int, setting: dict[str, Any], digest: str | None = None
    ) -> dict[str, Any] | None:
        """Return the row of a case, prompt, seed and setting, if it is there, and its cache had read the same."""
        wanted = {
            "method": case.method,
            "density_asked": case.density,
            "dense_share": case.dense_steps,
            "cache": case.cache,
            "cache_digest": digest,
        }
        return next(iter(self.within({**setting, **wanted, "prompt": prompt, "seed": seed})), None)

    def keep(self, made: Generation, prompt: str, seed: int, way: str) -> str | None:
        """Write a video that `way` made, and return its file as seen from the folder of videos, None without one."""
        return None if self.videos is None else self.videos.keep(made, prompt, seed, way)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row and write the file."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Replace the file at once, if there is one."""
        if self.file is None:
            return
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([finite(row) for row in self.rows], indent=1, allow_nan=False) + "\n")


def setting_of(loaded: LoadedPipeline, options: CallOptions) -> dict[str, Any]:
    """Return what all rows of a run have in common."""
    seed, call = call_arguments(loaded, "", **options)
    known = facts(loaded, None, call, seed)
    return {name: known[name] for name in SETTING}


def row_of(report: dict[str, Any], case: Case, option: float) -> dict[str, Any]:
    """Return what is kept of a comparison's report, and how it was asked for; `option` is what gave the density."""
    report = report | {
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

"""Diffusers' own caches by their names, to stand beside ours in a benchmark."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers

from accel.caching import registry
from accel.caching.policy import Policy
from accel.errors import InputError
from accel.models.adapters import transformers_of
from accel.naming import parse

PREFIX = "diffusers."
# What Wan needs beside diffusers' defaults: TaylorSeer's own patterns find nothing in it, broadcasting is off.
DEFAULTS: dict[str, dict[str, Any]] = {
    "FirstBlockCache": {},
    "MagCache": {},
    "TaylorSeerCache": {"cache_identifiers": [r"blocks\.\d+\.attn\d"]},
    "PyramidAttentionBroadcast": {"spatial_attention_block_skip_range": 2},
    "SeaCache": {},
}


@dataclass(frozen=True)
class TheirCache:
    """The name of a configuration without its last part, and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, pipeline: Any, steps: int) -> Any:
        """Return diffusers' configuration for a pipeline; InputError on options that it does not have."""
        own: dict[str, Any] = {}
        if self.name == "PyramidAttentionBroadcast":
            own = {"current_timestep_callback": lambda: pipeline.current_timestep}
        if self.name == "MagCache":
            own = {"num_inference_steps": steps}
        try:
            return getattr(diffusers, f"{self.name}Config")(**DEFAULTS[self.name] | own | self.options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{PREFIX}{self.name} cannot be used: {str(error).strip().splitlines()[0]}") from error

    @contextlib.contextmanager
    def enabled(self, pipeline: Any, steps: int) -> Iterator[None]:
        """Cache in all transformers of a pipeline for a `with` block."""
        config = self.config(pipeline, steps)
        cached = []
        try:
            for transformer in transformers_of(pipeline):
                try:
                    transformer.enable_cache(config)
                except ValueError as error:  # a class that diffusers' cache does not know
                    raise InputError(f"{PREFIX}{self.name} cannot be used: {error}") from error
                cached.append(transformer)
            yield
        finally:
            for transformer in cached:
                transformer.disable_cache()


Cache = Policy | TheirCache


def from_text(text: str) -> Cache:
    """Return ours, or of `diffusers.NAME:OPTION=VALUE` theirs; ValueError on what is not known."""
    if not text.startswith(PREFIX):
        return registry.from_text(text)
    name, options = parse(text.removeprefix(PREFIX))
    if name not in DEFAULTS:
        accepted = ", ".join(f"{PREFIX}{known}" for known in DEFAULTS)
        raise ValueError(f"unknown cache {PREFIX + name!r}; accepted: {', '.join(registry.POLICIES)}, {accepted}")
    return TheirCache(name, options)


def name_of(cache: Cache | None) -> str:
    """Return the name of a cache, `none` of None."""
    return f"{PREFIX}{cache.name}" if isinstance(cache, TheirCache) else registry.name_of(cache)


def digest_of(cache: Cache | None) -> str | None:
    """Return what tells apart caches of one name that have read other files; None where none are read."""
    return cache.digest() if isinstance(cache, Policy) else None


@contextlib.contextmanager
def printed_ratios(found: list[float]) -> Iterator[None]:
    """Add the ratios that MagCache prints when it was calibrated, of the first guidance branch."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        yield
    lines = [line for line in output.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    found.extend(ast.literal_eval(lines[0]) if lines else [])

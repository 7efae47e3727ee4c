"""What a benchmark compares: methods at a density and caches, and which of them go together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from accel.errors import InputError
from accel.methods import registry as method_registry
from accel.methods.method import Method
from accel.methods.registry import PRESET
from accel.workbench.their_caches import Cache
from accel.workbench.their_caches import from_text as cache_from_text

FIXED = "dense", PRESET


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


def method_of(case: Case, density: float) -> Method | None:
    """Return the method object of a case with its density option set to `density`, None for dense."""
    if case.method in FIXED:
        return None if case.method == "dense" else method_registry.from_text(case.method)
    return method_registry.from_text(case.method, density=density, dense_steps=case.dense_steps)


def cache_of(name: str) -> Cache | None:
    """Return the cache of a name with its options, None for none."""
    return None if name == "none" else cache_from_text(name)

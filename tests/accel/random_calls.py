"""Random options of every method and cache, and what a method makes of some steps with them.

Options are refused with one sentence, or attention is finite, of the density that it tells, and dense where it says so.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from typing import Any

import torch

from accel.attention.call import Geometry, LayerMemory
from accel.attention.execute import attend
from accel.caching import registry as caches
from accel.methods import registry as methods
from tests.accel.calls import dense, make_call

VALUES = (
    -1, 0, 1, 2, 3, 7, 16, 32, 10**4, 2**31, 2**63, -0.5, 0.0, 1e-9, 0.1, 0.5, 0.9, 1.0, 1.5, 1e30, float("inf"),
    float("nan"), True, False, None, "", "dense", "adaspa", (1, 2), [0.5], {},
)  # fmt: skip


def call_methods(number: int) -> str:
    """Make the call of that number and return what it was about and what became of it; raises where it is wrong."""
    generator = random.Random(number)
    torch.manual_seed(number)
    known: dict[str, Any] = methods.METHODS if generator.random() < 0.8 else caches.POLICIES
    name = generator.choice(tuple(known))
    options = {field.name: generator.choice(VALUES) for field in dataclasses.fields(known[name])}
    options = {key: options[key] for key in generator.sample(sorted(options), generator.choice((0, 1, 1, 2)))}
    by_name = methods.by_name if known is methods.METHODS else caches.by_name
    try:
        chosen = by_name(name, **options)
        if known is methods.METHODS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _attend(chosen, generator)
    except ValueError as error:
        text = str(error)
        assert text and "\n" not in text, f"not one line: {text!r}"
        return f"{name}: {text}"
    return f"{name}: done"


def _attend(method: Any, generator: random.Random) -> None:
    """Run some steps of one layer, with gaps, and assert what holds for any options."""
    geometry = Geometry(generator.randint(1, 4), generator.randint(1, 5), generator.randint(1, 9))
    memory, steps, batch = LayerMemory(), generator.randint(1, 8), generator.randint(1, 2)
    for step in sorted(generator.sample(range(steps), min(steps, 3))):
        call = make_call(step, steps, geometry, batch=batch, drift=0.03)
        attended = attend(call, method.plan(call, memory))
        assert attended.out.shape == call.q.shape and attended.out.isfinite().all()
        assert 0 <= attended.density <= 1
        if attended.kind == "dense" or attended.density == 1 and attended.kind == "sparse":
            assert (attended.out - dense(call)).abs().max() < 1e-4

"""What `torch.compile` makes of an attached transformer: a few graphs more, and none anew by layer or step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import accel
from accel.methods.registry import METHODS
from tests.accel.models.loops import Loop, difference

SPARSE = dict(density=0.4, dense_steps=0.25)
# One block becomes four graphs: before, in and after its attention; where torch's attention is caught, two.
MORE = 3


class Graphs:
    """A backend that counts the graphs it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, example_inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_graphs(loop: Loop) -> int:
    """Compile the blocks of a loop's transformer, run it twice, and return how many graphs that took."""
    graphs = Graphs()
    for block in loop.transformer.transformer_blocks if loop.name == "sd3" else ():
        block.compile(backend=graphs)
    if loop.name != "sd3":  # which tells diffusers no blocks to compile
        loop.transformer.compile_repeated_blocks(backend=graphs)
    first = loop()
    made = graphs.count
    assert difference(loop(), first) == 0 and graphs.count == made, "a second generation compiled anew"
    return made


@cache
def stock_graphs(name: str) -> int:
    """Return how many graphs the transformer takes without us."""
    made = compiled_graphs(Loop(name))
    torch._dynamo.reset()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [*(("wan-2.1", method) for method in METHODS), ("ltx-2", "svg-ear")])
def test_few_graphs_and_none_by_layer_or_step(name: str, method: str) -> None:
    loop, plain = Loop(name), stock_graphs(name)
    torch._dynamo.config.recompile_limit = 4
    options = SPARSE if method != "full" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "a window of density")
        with accel.enabled(loop, method, **options):
            eager = loop()
            made = compiled_graphs(loop)
            assert difference(loop(), eager) < 1e-6
    assert made <= plain + MORE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hunyuan-video", "sd3"])
def test_two_streams_and_caught_attention_compile(name: str) -> None:
    stock, loop = Loop(name), Loop(name)
    plain = stock_graphs(name)
    with accel.enabled(loop, "svg-ear", **SPARSE, query_clusters=4, key_clusters=8):
        eager = loop()
        made = compiled_graphs(loop)
        assert difference(loop(), eager) < 1e-6
    assert made <= MORE * plain + plain  # two kinds of blocks
    assert difference(loop(), stock()) < 1e-6  # compiled still, and stock again

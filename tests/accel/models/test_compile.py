"""What `torch.compile` makes of an attached transformer: the same graphs as without us, none anew by layer or step."""

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
    """Compile the blocks of a loop's transformer, run it twice, and return how many graphs that took; none breaks."""
    graphs, transformer = Graphs(), loop.transformer
    if transformer._repeated_blocks:
        transformer.compile_repeated_blocks(backend=graphs, fullgraph=True)
    else:  # some tell diffusers no blocks to compile
        for block in transformer.transformer_blocks:
            block.compile(backend=graphs, fullgraph=True)
    first = loop()
    made = graphs.count
    assert not counters["graph_break"]
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
    options = SPARSE if method != "full" else {}
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=4):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "a window of density")
        with accel.enabled(loop, method, **options):
            eager = loop()
            made = compiled_graphs(loop)
            assert difference(loop(), eager) < 1e-6
    assert made == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hunyuan-video", "sd3", "cogvideox-5b", "easyanimate"])
def test_two_streams_and_caught_attention_compile(name: str) -> None:
    stock, loop = Loop(name), Loop(name)
    plain = stock_graphs(name)
    with accel.enabled(loop, "svg-ear", **SPARSE, query_clusters=4, key_clusters=8):
        eager = loop()
        made = compiled_graphs(loop)
        assert difference(loop(), eager) < 1e-6
    assert made == plain
    assert difference(loop(), stock()) < 1e-6  # compiled still, and stock again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "cache"), [(None, "prune:threshold=0.5:warmup=1:order=1"), ("svg2", "table:every=2:warmup=1:order=1")]
)
def test_blocks_that_rest_are_compiled_as_they_are(method: str | None, cache: str) -> None:
    """What decides runs between the graphs, which are no more for twelve layers, and nothing breaks one."""
    plain, loop = stock_graphs("wan-2.1"), Loop("wan-2.1")
    torch.manual_seed(0)
    loop.transformer = type(loop.transformer)(**{**public(loop.transformer.config), "num_layers": 12}).eval()
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=4):
        warnings.simplefilter("error")
        with accel.enabled(loop, method, cache=cache, **(SPARSE if method else {})) as handle:
            eager = loop()
            assert {record.kind for record in handle.blocks()} == {"computed", "reused"}
            made = compiled_graphs(loop)
            assert difference(loop(), eager) < 1e-6
    assert made == plain


def public(config: Any) -> dict[str, Any]:
    """Return what a model is made with."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


@pytest.mark.slow
def test_compiled_before_enable_then_another_method_then_none() -> None:
    expected, plain = {}, Loop("wan-2.1")()
    for method in ("svg-ear", "adaspa"):
        twin = Loop("wan-2.1")
        with accel.enabled(twin, method, **SPARSE):
            expected[method] = twin()
    loop, graphs = Loop("wan-2.1"), Graphs()
    loop.transformer.compile_repeated_blocks(backend=graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(loop(), plain) < 1e-6
        stock, counts = graphs.count, []
        for method, outputs in expected.items():
            with accel.enabled(loop, method, **SPARSE) as handle:
                assert difference(loop(), outputs) < 1e-6
                assert "sparse" in {record.kind for record in handle.stats()}
            counts.append(graphs.count)
        assert counts == [2 * stock, 2 * stock], "those of before, and ours"
        assert difference(loop(), plain) < 1e-6 and graphs.count <= counts[1] + stock


@pytest.mark.slow
def test_a_transformer_that_rests_compiled_as_a_whole() -> None:
    loop, graphs = Loop("wan-2.1"), Graphs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with accel.enabled(loop, "svg-ear", cache="table:every=2:warmup=1:order=1", **SPARSE) as handle:
            eager = loop()
            loop.transformer.compile(backend=graphs)
            assert difference(loop(), eager) < 1e-6
            made = graphs.count
            assert difference(loop(), eager) < 1e-6 and graphs.count == made > 0
            assert {record.kind for record in handle.blocks()} == {"computed", "reused"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan-2.1", "ltx-2", "allegro"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_whole_transformer_is_one_graph_and_that_of_the_note_before_it(name: str, in_place: bool) -> None:
    loop, graphs = Loop(name), Graphs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with accel.enabled(loop, "adaspa", **SPARSE) as handle:
            eager = loop()
            if in_place:
                loop.transformer.compile(backend=graphs, fullgraph=True)
            else:
                loop.transformer = torch.compile(loop.transformer, backend=graphs, fullgraph=True)
            assert difference(loop(), eager) < 1e-6 and graphs.count == 2
            assert difference(loop(), eager) < 1e-6 and graphs.count == 2
            assert "sparse" in {record.kind for record in handle.stats()} and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "minimax-h3"])
def test_a_grid_that_values_tell_is_read_before_the_graph(name: str) -> None:
    loop, graphs = Loop(name), Graphs()
    with accel.enabled(loop, "adaspa", **SPARSE) as handle:
        eager = loop()
        loop.transformer.compile(backend=graphs)
        assert difference(loop(), eager) < 1e-6 and graphs.count == 2
        assert "sparse" in {record.kind for record in handle.stats()}

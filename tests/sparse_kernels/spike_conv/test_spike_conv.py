"""Event-driven convolution against its definition and the dense one, for every kind, backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.sparse_conv import KernelMap, sparse_conv, submanifold_map
from sparse_kernels.spike_conv import api, break_even, cpu, reference, spike_conv
from tests.sparse_kernels.processors import available
from tests.sparse_kernels.sparse_conv.scenes import draw_case

CASES = 150
RATES = 0.0, 0.05, 0.3, 1.0
built = pytest.mark.skipif(_extension.load() is not None, reason="the C++ kernel is not built")


def draw(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, KernelMap]:
    """Return spikes (steps rows channels), weights and a map."""
    case, generator = draw_case(seed), torch.Generator().manual_seed(seed)
    steps = 1 + seed % 3
    draws = torch.rand(steps, *case.features.shape, generator=generator)
    return (draws < RATES[seed % 4]).to(dtype), case.weight.to(dtype), case.map()


def test_reference_equals_the_dense_convolution_of_the_sum() -> None:
    for seed in range(CASES):
        spikes, weight, kernel_map = draw(seed)
        out = spike_conv(spikes, weight, kernel_map, backend="reference")
        torch.testing.assert_close(out, sparse_conv(spikes.sum(0), weight, kernel_map), rtol=0, atol=1e-11)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512"])
def test_cpu_equals_the_reference_on_every_instruction_set(instructions: str, dtype: torch.dtype) -> None:
    for seed in range(0, CASES, 3):
        spikes, weight, kernel_map = draw(seed, dtype)
        slots = weight.flatten(1, -2).permute(1, 2, 0)
        with available(instructions):
            out = cpu.accumulate(spikes, slots, kernel_map.forward, instructions)
        expected = reference.accumulate(spikes.double(), slots.double(), kernel_map.forward)
        scale = expected.abs().amax().item() if expected.numel() else 0.0
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=16 * scale * torch.finfo(dtype).eps + 1e-5)


@built
def test_bits_do_not_depend_on_the_number_of_threads_or_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(30, (5000, 3), generator=generator).unique(dim=0)
    kernel_map = submanifold_map(torch.nn.functional.pad(places, (1, 0)).int(), (30, 30, 30), 3)
    spikes = (torch.rand(2, len(places), 40, generator=generator) < 0.2).float()
    weight = torch.randn(72, 3, 3, 3, 40, generator=generator)
    before, results = torch.get_num_threads(), []
    for threads, given in ((1, spikes), (2, spikes), (5, spikes.mT.contiguous().mT)):
        torch.set_num_threads(threads)
        results.append(spike_conv(given, weight, kernel_map, backend="cpu"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    expected = sparse_conv(spikes.sum(0).double(), weight.double(), kernel_map)
    torch.testing.assert_close(results[0].double(), expected, rtol=1e-5, atol=1e-4)


@built
@pytest.mark.parametrize("limit", [0.0, 0.1, 1.0])
def test_the_choice_changes_the_time_and_not_the_result(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate, ran = api.accumulate, []
    monkeypatch.setattr(api, "break_even", lambda *given: limit if given[4] == "cpu" else 0.0)
    monkeypatch.setattr(api, "accumulate", lambda *given: ran.append(given) or accumulate(*given))
    for seed in (1, 2, 3, 6):
        spikes, weight, kernel_map = draw(seed, torch.float32)
        bias = torch.randn(len(weight))
        out = spike_conv(spikes, weight, kernel_map, bias)
        torch.testing.assert_close(out, sparse_conv(spikes.sum(0), weight, kernel_map, bias), rtol=1e-5, atol=1e-4)
        assert bool(ran) == (api._share(spikes) <= limit)
        ran.clear()


@pytest.mark.parametrize("backend", [None, "reference"])
def test_without_a_compiler_torch_makes_the_dense_products(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spikes, weight, kernel_map = draw(2, torch.float32)
    monkeypatch.setattr(_extension, "load", lambda: "no C++ compiler was found")
    leaves = [weight.clone().requires_grad_() for _ in range(2)]
    with pytest.warns(UserWarning, match="sparse convolution runs on the slow reference backend, .*: no C.. compiler"):
        out = spike_conv(spikes, leaves[0], kernel_map, backend=backend)
        out.sum().backward()
    expected = sparse_conv(spikes.sum(0), leaves[1], kernel_map, backend="reference")
    expected.sum().backward()
    torch.testing.assert_close((out, leaves[0].grad), (expected, leaves[1].grad), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reason", [pytest.param(None, marks=built), "no C++ compiler was found"])
def test_a_graph_is_whole_with_and_without_a_compiler(reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    spikes, weight, kernel_map = draw(2, torch.float32)
    monkeypatch.setattr(_extension, "load", lambda: reason)
    nodes: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nodes.extend(str(node.args[4]) for node in graph.graph.nodes if "sparse_conv" in str(node.target))
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lambda x: spike_conv(x, weight, kernel_map), fullgraph=True, backend=look)
    expected = sparse_conv(spikes.sum(0), weight, kernel_map, backend="reference")
    torch.testing.assert_close(compiled(spikes), expected, rtol=1e-5, atol=1e-4)
    assert nodes == ["reference" if reason else "cpu"]


def test_shapes_alone_are_no_reason_to_warn() -> None:
    spikes, weight, kernel_map = draw(2, torch.float32)
    fields = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in vars(kernel_map).items()}
    out = spike_conv(spikes.to("meta"), weight.to("meta"), KernelMap(**fields))
    assert out.is_meta and out.shape == (kernel_map.forward.shape[1], len(weight))


@built
def test_the_break_even_is_a_rate() -> None:
    assert 0 <= break_even(27, 32, 32, torch.float32, "cpu", torch.get_num_threads()) <= 1


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=built)])
def test_gradients_are_those_of_the_dense_convolution(dtype: torch.dtype) -> None:
    for seed in (1, 2, 5, 10):
        spikes, weight, kernel_map = draw(seed, dtype)
        backend, grads = "reference" if dtype == torch.float64 else "cpu", []
        for events in (True, False):
            x, w = spikes.clone().requires_grad_(), weight.clone().requires_grad_()
            made = spike_conv(x, w, kernel_map, backend=backend) if events else sparse_conv(x.sum(0), w, kernel_map)
            made.square().sum().backward()
            grads.append((x.grad, w.grad))
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's own forward mode
def test_forward_mode_is_refused() -> None:
    spikes, weight, kernel_map = draw(2)
    for backend in ("reference", None):
        with pytest.raises(NotImplementedError, match="spike_conv has no forward-mode derivative, only a backward"):
            torch.func.jvp(
                lambda w, backend=backend: spike_conv(spikes.bool(), w, kernel_map, backend=backend),
                (weight,),
                (torch.ones_like(weight),),
            )


@built
def test_operator_and_graph() -> None:
    spikes, weight, kernel_map = draw(1, torch.float32)
    slots, maps = weight.flatten(1, -2).permute(1, 2, 0), (kernel_map.forward, kernel_map.backward)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(api.accumulate, (spikes, slots, *maps, "cpu"), test_utils=tests)
    compiled = torch.compile(lambda x: api.accumulate(x, slots, *maps, "cpu"), fullgraph=True, backend="eager")
    assert torch.equal(compiled(spikes), spike_conv(spikes, weight, kernel_map, backend="cpu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bool_spikes_give_the_same_in_the_type_of_the_weights(dtype: torch.dtype) -> None:
    spikes, weight, kernel_map = draw(2, dtype)
    for backend in ("reference", None, *(["cpu"] if dtype != torch.float64 and _extension.load() is None else [])):
        out = spike_conv(spikes.bool(), weight, kernel_map, backend=backend)
        assert out.dtype == dtype
        torch.testing.assert_close(out, spike_conv(spikes, weight, kernel_map, backend=backend))
    leaf = weight.clone().requires_grad_()
    spike_conv(spikes.bool(), leaf, kernel_map).sum().backward()
    other = weight.clone().requires_grad_()
    spike_conv(spikes, other, kernel_map).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bytes_are_numbers_of_spikes_that_arrive_together(dtype: torch.dtype) -> None:
    for seed in (0, 2, 5):
        spikes, weight, kernel_map = draw(seed, dtype)
        counts = spikes.sum(0).byte() * 3  # as of three times the steps
        expected = sparse_conv(counts.double(), weight.double(), kernel_map)
        for backend in ("reference", None, *(["cpu"] if dtype != torch.float64 and _extension.load() is None else [])):
            out = spike_conv(counts, weight, kernel_map, backend=backend)
            limit = 16 * expected.abs().amax().item() * torch.finfo(dtype).eps + 1e-12 if expected.numel() else 0.0
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=limit)


@built
@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512"])
def test_bytes_give_the_same_on_every_instruction_set(instructions: str) -> None:
    for seed in range(0, CASES, 10):
        spikes, weight, kernel_map = draw(seed, torch.float32)
        slots, counts = weight.flatten(1, -2).permute(1, 2, 0), (spikes * 255).byte()
        with available(instructions):
            out = cpu.accumulate(counts, slots, kernel_map.forward, instructions)
        expected = reference.accumulate(counts, slots.double(), kernel_map.forward)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=built), pytest.param(None, marks=built)])
@pytest.mark.parametrize("wrong", [0.5, -1.0, 2.0, 1e-40, float("nan"), float("inf")])
def test_what_is_no_spike_is_refused(
    wrong: float, backend: str | None, unchecked_shapes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "break_even", lambda *_: 1.0)
    spikes, weight, kernel_map = draw(1, torch.float32)
    spikes[0, -1, -1] = wrong
    with pytest.raises(ValueError, match="spikes must be 0 or 1"):
        spike_conv(spikes, weight, kernel_map, backend=backend)


def test_what_does_not_fit_is_refused(unchecked_shapes: None) -> None:
    spikes, weight, kernel_map = draw(1, torch.float32)
    for given, words in (
        ((spikes[0, 0], weight, kernel_map), r"spikes must be \(rows, channels\) or \(steps"),
        ((spikes[:0], weight, kernel_map), "spikes must be"),
        ((spikes.int(), weight, kernel_map), "must share one of"),
        ((spikes[:, :-1], weight, kernel_map), "input rows of the map"),
        ((spikes[..., :-1], weight, kernel_map), "weight must be"),
        ((spikes, weight, kernel_map.forward), "kernel_map must be a KernelMap"),
        ((spikes, weight, kernel_map, weight), "bias must be"),
    ):
        with pytest.raises(ValueError, match=words):
            spike_conv(*given)
    with pytest.raises(ValueError, match="unknown backend"):
        spike_conv(spikes, weight, kernel_map, backend="fast")


@built
def test_a_map_that_names_other_rows_is_refused() -> None:
    spikes, weight, kernel_map = draw(1, torch.float32)
    kernel_map.forward[0, 0] = spikes.shape[1]
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match="must name input rows"):
            spike_conv(spikes, weight, kernel_map, backend=backend)

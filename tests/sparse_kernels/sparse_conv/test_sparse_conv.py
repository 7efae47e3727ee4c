"""Sparse convolution against torch's dense one, for every kind, backend, instruction set and number of threads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.autograd import forward_ad

from sparse_kernels import _extension, fill_budget
from sparse_kernels._backends import load_backend
from sparse_kernels.sparse_conv import (
    KernelMap,
    api,
    build,
    cpu,
    reference,
    sparse_conv,
    strided_map,
    submanifold_map,
    transposed_map,
)
from sparse_kernels.sparse_conv.coordinates import check_coordinates
from sparse_kernels.spike_conv import choice as spike_conv_choice
from tests.sparse_kernels.processors import available
from tests.sparse_kernels.sparse_conv.scenes import Case, draw_case, draw_grouped_case

CASES = 500
NARROW = ("avx512_bf16", "amx", "amx_emulated")  # what these multiply is bf16
built = pytest.mark.skipif(_extension.load() is not None, reason="the C++ kernel is not built")


@pytest.fixture(params=(1, 2, 5))
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def cases(draw: Callable[[int], Case], threads: int = 1) -> Iterator[tuple[int, Case]]:
    """Numbered random cases; of those in groups, and of those on many threads, fewer will do."""
    return ((seed, draw(seed)) for seed in range(0, CASES if draw is draw_case else CASES // 3, threads))


@pytest.mark.parametrize("draw", [draw_case, draw_grouped_case])
def test_float64_equals_dense_with_gradients(draw: Callable[[int], Case]) -> None:
    for seed, case in cases(draw):
        kernel_map = case.map()
        results = []
        for dense in (False, True):
            x, weight = case.features.clone().requires_grad_(), case.weight.clone().requires_grad_()
            if dense:
                out = case.dense(x, weight, kernel_map)
            else:
                out = sparse_conv(x, weight, kernel_map, groups=case.groups)
            generator = torch.Generator().manual_seed(seed)
            out.backward(torch.randn(out.shape, dtype=out.dtype, generator=generator))
            results.append((out, x.grad, weight.grad))
        for name, ours, expected in zip(("out", "features", "weight"), *results, strict=True):
            assert ours.shape == expected.shape
            error, largest = ((x.abs().amax().item() if x.numel() else 0.0) for x in (ours - expected, expected))
            assert error <= 1e-12 * max(1, largest), (seed, name)


@built
@pytest.mark.parametrize("draw", [draw_case, draw_grouped_case])
def test_cpu_equals_float64_with_any_number_of_threads(threads: int, draw: Callable[[int], Case]) -> None:
    for seed, case in cases(draw, threads):
        kernel_map, x, weight = case.map(), case.features.float(), case.weight.float().flatten(1, -2).permute(1, 2, 0)
        gradient = torch.randn(
            kernel_map.forward.shape[1], weight.shape[2], generator=torch.Generator().manual_seed(seed)
        )
        for run, arguments in (
            ("convolve", (x, weight, kernel_map.forward)),
            ("convolve", (gradient, api.turned(weight, case.groups), kernel_map.backward)),
            ("weight_gradient", (x, gradient, kernel_map.forward)),
        ):
            ours = getattr(cpu, run)(*arguments, case.groups)
            again = getattr(cpu, run)(*arguments, case.groups)
            wide = [argument.double() if argument.is_floating_point() else argument for argument in arguments]
            expected = getattr(reference, run)(*wide, case.groups)
            assert torch.equal(ours, again)
            assert ours.numel() == 0 or (ours - expected).abs().amax() < 3e-6 * expected.abs().amax() + 1e-6, (
                seed,
                run,
            )


@built
@pytest.mark.parametrize("groups", [1, 3, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, groups: int) -> None:
    x, weight = torch.randn(300, 33).to(dtype), torch.randn(27, 33 // groups, 66).to(dtype)
    kernel_map = torch.randint(-1, len(x), (27, 3000)).int()
    gradient = torch.randn(3000, 66).to(dtype)
    results, before = [], torch.get_num_threads()
    for count in (1, 2, 3, 8, 16):  # of many, jobs have fewer channels
        torch.set_num_threads(count)
        results.append(
            (cpu.convolve(x, weight, kernel_map, groups), cpu.weight_gradient(x, gradient, kernel_map, groups))
        )
    torch.set_num_threads(before)
    for out, to_weight in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(to_weight, results[0][1])


@built
@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512", *NARROW])
@pytest.mark.parametrize("dtype", cpu.DTYPES)
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "groups"), [(23, 70, 1), (80, 40, 2), (24, 72, 24), (48, 16, 16)]
)
def test_instruction_sets_and_types(
    instructions: str, dtype: torch.dtype, channels_in: int, channels_out: int, groups: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, channels_in, generator=generator).to(dtype)
    weight = torch.randn(9, channels_in // groups, channels_out, generator=generator).to(dtype)
    kernel_map = torch.randint(-700, 700, (9, 600), generator=generator).clamp(min=-1).int()
    gradient = torch.randn(600, channels_out, generator=generator).to(dtype)
    if instructions in NARROW and (dtype != torch.bfloat16 or groups == channels_in):
        with pytest.raises(ValueError, match="must be bfloat16|is not available|unknown instruction set"):
            cpu.convolve(x, weight, kernel_map, groups, instructions)
        return
    with available(instructions):
        out = cpu.convolve(x, weight, kernel_map, groups, instructions)
    expected = reference.convolve(x.double(), weight.double(), kernel_map, groups)
    plain = (expected.to(dtype) - expected).abs().amax()
    assert out.dtype == dtype and (out - expected).abs().amax() < 1.1 * plain + 3e-5
    ours = cpu.weight_gradient(x, gradient, kernel_map, groups, instructions)
    expected = reference.weight_gradient(x.double(), gradient.double(), kernel_map, groups)
    assert (ours - expected).abs().amax() < 3e-6 * expected.abs().amax()


@built
@pytest.mark.parametrize("instructions", ["", "portable", *NARROW])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_what_is_not_finite_stays_in_its_row_and_group(instructions: str, groups: int) -> None:
    if groups == 6 and instructions in NARROW:
        return  # depthwise: there is no such kernel
    x, weight = torch.ones(40, 6).bfloat16(), torch.ones(3, 6 // groups, 12).bfloat16()
    x[7, 0] = float("inf")
    kernel_map = torch.arange(40).int().repeat(3, 1)
    with available(instructions):
        out = cpu.convolve(x, weight, kernel_map, groups, instructions)
    assert (out[7, : 12 // groups] == float("inf")).all()
    assert out[:7].isfinite().all() and out[8:].isfinite().all() and out[7, 12 // groups :].isfinite().all()
    kernel_map[:, 7] = -1  # the row is in no pair
    to_weight = cpu.weight_gradient(x, torch.ones(40, 12).bfloat16(), kernel_map, groups, instructions)
    assert (to_weight == 39).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_every_order(groups: int) -> None:
    case = draw_case(5)
    kernel_map = case.map()
    x = case.features[:, :4].clone().requires_grad_()
    weight = case.weight[:4, ..., : 4 // groups].clone().requires_grad_()

    def run(*leaves: torch.Tensor) -> torch.Tensor:
        return sparse_conv(*leaves, kernel_map, groups=groups)

    assert torch.autograd.gradcheck(run, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, weight), fast_mode=True)


@built
@pytest.mark.parametrize("draw", [draw_case, draw_grouped_case])
def test_operators_pass_opcheck(draw: Callable[[int], Case]) -> None:
    case = draw(2)
    kernel_map, weight = case.map(), case.weight.float().flatten(1, -2).permute(1, 2, 0)
    x, maps = case.features.float().requires_grad_(), (kernel_map.forward, kernel_map.backward)
    torch.library.opcheck(api.convolve, (x, weight.requires_grad_(), *maps, "cpu", case.groups))
    gradient = torch.randn(maps[0].shape[1], weight.shape[2])
    torch.library.opcheck(api.convolve_weight, (x, gradient, *maps, "cpu", case.groups))


def test_inverse_leads_back() -> None:
    case = draw_case(1)
    down = strided_map(case.coordinates, case.shape, 3, 2, 1)
    up = down.inverse()
    assert up.shape == case.shape and torch.equal(up.coordinates, case.coordinates)
    assert up.inverse() == down
    assert down.pairs() == up.pairs() == int((down.backward >= 0).sum())
    codes = down.coordinates.long() @ torch.tensor([10**6, 10**4, 100, 1][-down.coordinates.shape[1] :])
    assert torch.equal(codes, codes.sort().values)  # ascending coordinates


def test_maps_of_the_same_numbers_are_equal() -> None:
    kernel_map = submanifold_map(_line(1, 2, 4), (5,), 3)
    again = copy.deepcopy(kernel_map)
    assert again == kernel_map and hash(again) == hash(kernel_map) and kernel_map != "a map"
    assert dataclasses.replace(kernel_map, forward=kernel_map.forward.flip(1)) != kernel_map
    assert dataclasses.replace(kernel_map, shape=(6,)) != kernel_map
    assert dataclasses.replace(kernel_map, backward=kernel_map.backward.to("meta")) != kernel_map


@pytest.mark.parametrize("reason", [pytest.param(None, marks=built), "no C++ compiler was found"])
def test_a_graph_is_whole_with_and_without_a_compiler(reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(2)
    kernel_map, x, weight = case.map(), case.features.float(), case.weight.float()
    monkeypatch.setattr(_extension, "load", lambda: reason)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: sparse_conv(x, weight, kernel_map), fullgraph=True, backend="eager")
    expected = sparse_conv(x, weight, kernel_map, backend="reference" if reason else "cpu")
    assert torch.equal(compiled(x), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's own forward mode
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=built)])
def test_forward_mode_is_refused(dtype: torch.dtype) -> None:
    case = draw_case(2)
    kernel_map, x, weight = case.map(), case.features.to(dtype), case.weight.to(dtype)
    for run, given in (
        (lambda features: sparse_conv(features, weight, kernel_map), x),
        (lambda weights: sparse_conv(x, weights, kernel_map), weight),
    ):
        with pytest.raises(NotImplementedError, match="derivative, only a backward pass: use torch.autograd.grad$"):
            torch.func.jvp(run, (given,), (torch.ones_like(given),))
    x = x.clone().requires_grad_()
    with forward_ad.dual_level():  # a tangent that comes with the gradient
        out = sparse_conv(x, weight, kernel_map)
        factor = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match="sparse_conv has no forward-mode"):
            torch.autograd.grad((out * factor).sum(), x)
    x = x.detach()
    with forward_ad.dual_level():  # a bias is added by torch, which has a formula for that
        ones = torch.ones(len(weight), dtype=dtype)
        out = sparse_conv(x, weight, kernel_map, forward_ad.make_dual(torch.zeros_like(ones), ones))
        assert (forward_ad.unpack_dual(out).tangent == 1).all()


def test_what_is_not_on_the_cpu_stays_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(
        build, "find_neighbors_reference", lambda keys, steps: asked.append(keys) or (keys.int()[None], -1)
    )
    keys = torch.zeros(3, dtype=torch.int64, device="meta")
    build._find_neighbors(keys, keys[:1])
    assert len(asked) == 1 and asked[0] is keys


def test_cpu_and_torch_find_the_same_neighbors() -> None:
    case = next(case for case in map(draw_case, range(50)) if case.kind == "submanifold" and len(case.shape) == 3)
    expected = case.map()
    keys = case.coordinates.long() @ torch.tensor([10**6, 10**4, 100, 1])
    steps = torch.tensor([-10101, -10100, -10099, -1])
    found, twin = build.find_neighbors_reference(keys, steps)
    assert twin == -1 and found.shape == (9, len(keys))
    for slot, step in enumerate([*steps.tolist(), 0, *(-steps.flip(0)).tolist()]):
        for row, other in enumerate(found[slot].tolist()):
            wanted = (keys == keys[row] + step).nonzero().flatten().tolist()
            assert wanted == ([other] if other >= 0 else [])
    if _extension.load() is None:
        ours, _ = torch.ops.sparse_kernels.find_neighbors_cpu(keys, steps)
        assert torch.equal(ours, found)
    assert torch.equal(expected.backward, expected.forward.flip(0))


@built
@pytest.mark.parametrize("spread", [1, 2**40])  # a grid of bits, and a hash table
def test_neighbors_near_and_far(spread: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(1 << 16, generator=generator)[:20_000] * spread - 12345 * spread
    steps = torch.tensor([-300, -2, -1]) * spread
    expected, _ = build.find_neighbors_reference(keys, steps)
    ours, twin = torch.ops.sparse_kernels.find_neighbors_cpu(keys, steps)
    assert twin == -1 and torch.equal(ours, expected)
    keys[[700, 19_000]] = keys[[3, 5]]
    assert torch.ops.sparse_kernels.find_neighbors_cpu(keys, steps)[1] == 700


@built
@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("last_batch", [8, 2**40])  # a grid of bits, and a hash table
def test_cpu_and_torch_reach_the_same_places(axes: int, transposed: bool, last_batch: int) -> None:
    generator = torch.Generator().manual_seed(axes)
    for kernel, stride, padding, dilation in ((3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 2, 2), (1, 3, 0, 1), (4, 3, 3, 2)):
        size = 9 if axes < 4 else 5
        coordinates = torch.randint(0, size, (3000, axes + 1), generator=generator).unique(dim=0)
        coordinates[-1, 0] = last_batch
        settings = torch.tensor([[kernel, stride, padding, dilation, size]] * axes)
        expected = build.reach_places_reference(coordinates, settings, transposed)
        ours = torch.ops.sparse_kernels.reach_places_cpu(coordinates, settings, transposed)
        assert all(map(torch.equal, ours, expected))


def test_empty_and_huge() -> None:
    nothing = torch.zeros(0, 4, dtype=torch.int32)
    for kernel_map in (submanifold_map(nothing, (8, 8, 8), 3), strided_map(nothing, (8, 8, 8), 3, 2)):
        out = sparse_conv(torch.zeros(0, 4, requires_grad=True), torch.ones(5, 3, 3, 3, 4), kernel_map)
        assert out.shape == (0, 5)
        out.sum().backward()
    far = torch.tensor([[0, 0, 0, 0], [0, 2**20, 2**20, 2**20 - 1], [0, 2**20, 2**20, 2**20]], dtype=torch.int32)
    assert submanifold_map(far, (2**20 + 1,) * 3, 3).pairs() == 5
    with pytest.raises(ValueError, match="2\\^63"):
        submanifold_map(far, (2**31 - 1,) * 3, 3)


def _line(*places: int) -> torch.Tensor:
    return torch.tensor([[0, place] for place in places], dtype=torch.int32)


@pytest.mark.usefixtures("unchecked_shapes")
def test_clear_errors() -> None:
    for backend_keys in (_line(1, 1), _line(3, 1, 2, 1)):
        with pytest.raises(ValueError, match="unique, row . has those of another"):
            submanifold_map(backend_keys, (5,), 3)
        with pytest.raises(ValueError, match="unique, row . has those of another"):
            strided_map(backend_keys, (5,), 3)
    for coordinates, shape, message in (
        (_line(-1), (5,), "negative"),
        (_line(5), (5,), "outside the shape"),
        (_line(1), (5, 5), "of shape \\(rows, 3\\)"),
        (_line(1).float(), (5,), "int32 or int64"),
        (_line(1), (0,), "sizes between"),
    ):
        with pytest.raises(ValueError, match=message):
            check_coordinates(coordinates, shape)
    with pytest.raises(ValueError, match="must be odd"):
        submanifold_map(_line(1), (5,), 2)
    with pytest.raises(ValueError, match="too small"):
        strided_map(_line(1), (5,), 7)
    for build_map, settings in ((strided_map, {"padding": 2**20}), (transposed_map, {"stride": 2})):
        with pytest.raises(ValueError, match=r"the output of .* would be .* at most 2\^31 - 1 places"):
            build_map(_line(2**31 - 2), (2**31 - 1,), 3, **settings)
    for build_map in (submanifold_map, strided_map, transposed_map):
        with pytest.raises(ValueError, match="kernel has 2147483649 slots, .* at most 32768"):
            build_map(_line(1), (5,), 2**31 + 1)
    kernel_map = submanifold_map(_line(1, 2), (5,), 3)
    for features, weight, message in (
        (torch.zeros(3, 4), torch.zeros(5, 3, 4), "2 input rows"),
        (torch.zeros(2, 4), torch.zeros(5, 5, 4), "weight must be"),
        (
            torch.zeros(2, 4),
            torch.zeros(5, 3, 4).double(),
            "features, weight must share one of float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_conv(features, weight, kernel_map)
    for groups in (0, -1, 3, 2.0, True, "2"):
        with pytest.raises(ValueError, match="groups must be a whole number that divides the 4 in .* the 5 out .* got"):
            sparse_conv(torch.zeros(2, 4), torch.zeros(5, 3, 4), kernel_map, groups=groups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups must .* 4 in channels and the 6 out channels, got 4"):
        sparse_conv(torch.zeros(2, 4), torch.zeros(6, 3, 1), kernel_map, groups=4)
    with pytest.raises(ValueError, match="weight must be .* 2 in channels a group, with 2 groups"):
        sparse_conv(torch.zeros(2, 4), torch.zeros(6, 3, 4), kernel_map, groups=2)
    with pytest.raises(ValueError, match="unknown backend 'triton'"):
        sparse_conv(torch.zeros(2, 4), torch.zeros(5, 3, 4), kernel_map, backend="triton")
    with pytest.raises(ValueError, match="bias must be"):
        sparse_conv(torch.zeros(2, 4), torch.zeros(5, 3, 4), kernel_map, torch.zeros(4))
    with pytest.raises(ValueError, match="bias must be .* got list"):
        sparse_conv(torch.zeros(2, 4), torch.zeros(5, 3, 4), kernel_map, [0.0] * 5)  # type: ignore[arg-type]
    assert isinstance(kernel_map, KernelMap)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_maps_made_by_hand_are_checked(backend: str) -> None:
    good = submanifold_map(_line(1, 2, 4), (5,), 3)
    with pytest.raises(ValueError, match="forward must be torch.int32 .3, 3. .* got torch.int64 .3, 3."):
        dataclasses.replace(good, forward=good.forward.long())
    with pytest.raises(ValueError, match="backward must be torch.int32 .3, 3. .* got torch.int32 .3, 2."):
        dataclasses.replace(good, backward=good.backward[:, 1:])
    with pytest.raises(ValueError, match="input_coordinates must be a tensor .* got NoneType"):
        dataclasses.replace(good, input_coordinates=None)
    elsewhere = dataclasses.replace(good, backward=good.backward.to("meta"))
    with pytest.raises(ValueError, match="backward is on meta, features on cpu"):
        sparse_conv(torch.ones(3, 4), torch.ones(5, 3, 4), elsewhere, backend=backend)
    x, weight = torch.ones(3, 4, requires_grad=True), torch.ones(5, 3, 4, requires_grad=True)
    for row in (3, 2**31 - 1):
        wrong = good.forward.clone()
        wrong[1, 1] = row
        for kernel_map in (dataclasses.replace(good, forward=wrong), dataclasses.replace(good, backward=wrong)):
            with pytest.raises(ValueError, match="the kernel map must name input rows 0 to 2, or -1 for none"):
                sparse_conv(x, weight, kernel_map, backend=backend).sum().backward()
        with pytest.raises(ValueError, match="the kernel map must name input rows 0 to 2"):
            load_backend("sparse_conv", backend).weight_gradient(torch.ones(3, 4), torch.ones(3, 5), wrong)
    with pytest.raises(ValueError, match="kernel_map must be a KernelMap, .* got torch.int32"):
        sparse_conv(x, weight, good.forward)


@built
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512", *NARROW])
def test_weight_gradients_of_many_equal_products_are_exact(instructions: str, groups: int) -> None:
    """Added up one after another in float32, 400,000 times 0.1 is 0.05 % too much."""
    rows, dtype = 400_000, torch.bfloat16 if instructions in NARROW else torch.float32
    kernel_map = torch.arange(rows, dtype=torch.int32)[None]
    x, gradient = torch.ones(rows, 4, dtype=dtype), torch.full((rows, 4), 0.1, dtype=dtype)
    expected = rows * gradient[0, 0].double().item()
    with available(instructions):
        if groups == 4:
            if instructions in NARROW:
                pytest.skip("depthwise convolution is in float32")
            made = torch.ops.sparse_kernels.sparse_conv_depthwise_weight_cpu(x, gradient, kernel_map, instructions)
        else:
            made = torch.ops.sparse_kernels.sparse_conv_weight_cpu(x, gradient, kernel_map, 1, instructions)
    assert (made.double() / expected - 1).abs().max() < 1e-5


@built
def test_the_default_device_of_the_user_may_be_another() -> None:
    case = draw_case(5)
    kernel_map = strided_map(case.coordinates, case.shape, 3, 2, 1)
    with torch.device("meta"):
        there = strided_map(case.coordinates, case.shape, 3, 2, 1)
        assert torch.equal(there.forward, kernel_map.forward)
        assert 0 <= spike_conv_choice.break_even.__wrapped__(3, 4, 4, torch.float32, "cpu", 1) <= 1
        kept = fill_budget(torch.rand(2, 5, device="cpu"), torch.ones(5, device="cpu").long(), 2)
    assert kept.sum() == 4

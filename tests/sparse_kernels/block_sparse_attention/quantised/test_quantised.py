"""Attention with 8-bit operands: the rounding by plain loops, its error against float64, the C++ kernel."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from sparse_kernels import BlockMap, _extension, block_sparse_attention
from sparse_kernels.block_sparse_attention import cpu as plain_cpu
from sparse_kernels.block_sparse_attention import precision_reasons
from sparse_kernels.block_sparse_attention.quantised import cpu, reference, rounding
from tests.sparse_kernels.cases import Case, brute_force, make_case
from tests.sparse_kernels.processors import available

INSTRUCTIONS = ["amx_int8", "avx512_int8", "amx_int8_emulated"]  # the first two run where the processor has them


def with_outliers(case: Case) -> Case:
    """Channels of k that are large in every token, as trained models have them."""
    offset = torch.zeros(case.k.shape[-1])
    offset[[1, 7]] = torch.tensor([25.0, -40.0])
    return dataclasses.replace(case, k=(case.k.float() + offset).to(case.k.dtype))


def run(case: Case, precision: str, backend: str = "reference") -> tuple[Tensor, Tensor]:
    return block_sparse_attention(
        case.q, case.k, case.v, case.block_map, q_order=case.q_order, kv_order=case.kv_order, return_lse=True,
        backend=backend, precision=precision,
    )  # fmt: skip


def run_kernel(case: Case, instructions: str) -> tuple[Tensor, Tensor]:
    arguments = (case.q, case.k, case.v, case.block_map, case.q_order, case.kv_order, case.q.shape[-1] ** -0.5)
    return cpu.forward(*arguments, "int8", instructions)


def skip_unless_available(instructions: str) -> None:
    with available(instructions):
        run_kernel(make_case(0, q_length=4, kv_length=8), instructions)


def relative_error(out: Tensor, exact: Tensor) -> float:
    return ((out.double() - exact).norm() / exact.norm()).item()


def assert_lse(lse: Tensor, exact: Tensor, tolerance: float) -> None:
    finite = exact.isfinite()
    assert torch.equal(lse.isfinite(), finite) and (lse[~finite] == -torch.inf).all()
    assert (lse[finite].double() - exact[finite]).abs().max() < tolerance


def cast(x: Tensor, precision: str) -> Tensor:
    """Round to the nearest number that 8 bits hold."""
    return x.round() if precision == "int8" else x.to(torch.float8_e4m3fn).float()


def attend_by_loops(case: Case, b: int, h: int, precision: str) -> tuple[Tensor, Tensor]:
    """One head from the words of the specification, block by block; by position, not in the callers' order."""
    m = case.block_map
    top = 127 if precision == "int8" else 448
    kv_head = h * case.k.shape[1] // case.q.shape[1]
    q, k, v = case.q[b, h].float(), case.k[b, kv_head].float(), case.v[b, kv_head].float()
    shift = k.mean(0) if precision == "int8" else torch.zeros(q.shape[1])
    unrounded_q, k = q, k - shift
    if precision == "fp8":
        size = v.abs().amax(0) / top
        v = cast(v / size, precision) * size
    assert case.q_order is not None and case.kv_order is not None
    q, k, v = q[case.q_order[b, h]], k[case.kv_order[b, h]], v[case.kv_order[b, h]]
    for x, offsets in ((q, m.q_offsets[0, h].tolist()), (k, m.kv_offsets[0, h].tolist())):
        for start, stop in itertools.pairwise(offsets):
            if start < stop:
                size = x[start:stop].abs().max() / top
                x[start:stop] = cast(x[start:stop] / size, precision) * size
    scores = (q.double() @ k.double().T * q.shape[1] ** -0.5).masked_fill(~m.to_mask()[b, h], -torch.inf)
    lse = scores.logsumexp(-1)
    if precision == "int8":
        out = scores.softmax(-1).nan_to_num(0) @ v.double()
    else:
        weights = (scores - scores.amax(-1, keepdim=True)).exp().nan_to_num(0)
        out = cast(weights * top, precision).double() / top @ v.double() / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    return out, lse + (unrounded_q[case.q_order[b, h]] @ shift).double() * q.shape[1] ** -0.5


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_reference_equals_loops(precision: str) -> None:
    case = with_outliers(make_case(1))
    out, lse = run(case, precision)
    assert case.q_order is not None
    for b, h in itertools.product(range(2), range(4)):
        expected, expected_lse = attend_by_loops(case, b, h, precision)
        order = case.q_order[b, h]
        # In E4M3 a score that differs in its last float32 bit can send a weight to the next number.
        assert relative_error(out[b, h][order], expected) < (1e-4 if precision == "int8" else 3e-3)
        assert_lse(lse[b, h][order], expected_lse, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outliers", [False, True])
def test_int8_is_near_float64(dtype: torch.dtype, outliers: bool) -> None:
    case = make_case(2, dtype=torch.float32)
    case = with_outliers(case) if outliers else case
    case = dataclasses.replace(case, q=case.q.to(dtype), k=case.k.to(dtype), v=case.v.to(dtype))
    exact, exact_lse = brute_force(case)
    out, lse = run(case, "int8")
    assert out.dtype == dtype
    assert relative_error(out, exact) <= 2e-2
    assert_lse(lse, exact_lse, 0.1)


def test_smoothing_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    case = with_outliers(make_case(3))
    exact = brute_force(case)[0]
    smooth = relative_error(run(case, "int8")[0], exact)
    monkeypatch.setattr(reference, "key_mean", lambda k: torch.zeros_like(k[:, :, 0], dtype=torch.float32))
    assert relative_error(run(case, "int8")[0], exact) > 4 * smooth


def test_fp8_is_near_float64() -> None:
    case = make_case(4)
    exact, exact_lse = brute_force(case)
    out, lse = run(case, "fp8")
    assert 2e-2 < relative_error(out, exact) < 8e-2  # three bits of fraction: far above int8
    assert_lse(lse, exact_lse, 0.3)


def test_rounding_is_to_nearest_even_by_block() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, -2.5, 254.0, 5.0, 0.0, 0.0]).view(1, 1, 8, 1)
    offsets, order = torch.tensor([[[0, 4, 4, 6, 8]]], dtype=torch.int32), torch.arange(8)[None, None]
    for rows, permutation in ((x, None), (x.flip(2), order.flip(2))):
        rounded = rounding.round_blocks(rows, offsets, permutation, 1, "int8")
        assert rounded.values.flatten().tolist() == [127, 0, 2, -2, 127, 2, 0, 0]
        assert rounded.scales.flatten().tolist() == [1, 1, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_cpu_kernel_equals_reference(instructions: str, dtype: torch.dtype, head_dim: int) -> None:
    skip_unless_available(instructions)
    for seed, orders in ((0, False), (1, True)):
        case = with_outliers(make_case(seed, head_dim=head_dim, dtype=dtype, orders=orders))
        out, lse = run_kernel(case, instructions)
        expected, expected_lse = run(case, "int8")
        assert out.dtype == dtype
        assert_lse(lse, expected_lse.double(), 2e-4)
        assert relative_error(out, expected.double()) < 6e-3  # the kernel rounds weights and values to bf16
        assert (out[~lse.isfinite()] == 0).all()


def test_cpu_kernel_shares_keys_between_heads() -> None:
    skip_unless_available(INSTRUCTIONS[1])
    case = make_case(5, orders=False)
    block_map = BlockMap.uniform(torch.rand(1, 1, 5, 4) < 0.7, 32, 48, 131, 150)
    case = with_outliers(dataclasses.replace(case, block_map=block_map))
    out, lse = run_kernel(case, INSTRUCTIONS[1])
    expected, expected_lse = run(case, "int8")
    assert_lse(lse, expected_lse.double(), 2e-4)
    assert relative_error(out, expected.double()) < 6e-3
    assert relative_error(out, brute_force(case)[0]) <= 2e-2


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cpu_kernel_is_deterministic(threads: int) -> None:
    skip_unless_available(INSTRUCTIONS[1])
    case = make_case(8)
    expected = run_kernel(case, INSTRUCTIONS[1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            again = run_kernel(case, INSTRUCTIONS[1])
            assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("unchecked_shapes")
def test_key_mean_is_checked() -> None:
    skip_unless_available(INSTRUCTIONS[1])
    case = make_case(8)
    arguments = (case.q, case.k, case.v, case.block_map, None, None, 0.1)
    for instructions, mean in ((INSTRUCTIONS[1], torch.zeros(2, 2, 63)), ("portable", torch.zeros(2, 2, 64))):
        with pytest.raises(ValueError, match="key_mean must be float32"):
            plain_cpu.forward(*arguments, instructions, mean)


@pytest.mark.parametrize("kernel", ["reference", "amx_int8_emulated"])
def test_constant_keys_and_values_that_are_not_finite(kernel: str) -> None:
    if kernel != "reference":
        skip_unless_available(kernel)
    q, v = torch.randn(2, 1, 1, 40, 64, generator=torch.Generator().manual_seed(0)).unbind()
    block_map = BlockMap.uniform(torch.ones(1, 1, 3, 3, dtype=torch.bool), 16, 16, 40, 40)
    case = Case(q, torch.full_like(q, 3.0), v, block_map, None, None)
    out, lse = run(case, "int8") if kernel == "reference" else run_kernel(case, kernel)
    assert (out - v.mean(2, keepdim=True)).abs().max() < 1e-2
    assert_lse(lse, brute_force(case)[1], 1e-3)
    q = q.clone()
    q[0, 0, 20, 50] = torch.nan
    case = dataclasses.replace(case, q=q, k=torch.randn(q.shape, generator=torch.Generator().manual_seed(1)))
    out, _ = run(case, "int8") if kernel == "reference" else run_kernel(case, kernel)
    spoiled = out[0, 0].isnan().any(-1)
    assert spoiled[16:32].all() and not spoiled[:16].any() and not spoiled[32:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; accepted: int8, fp8"),
        ({"precision": "int8", "backend": "flex"}, "flex has no precision 'int8'; accepted: cpu, triton, reference"),
        ({"precision": "fp8", "backend": "cpu"}, "cpu cannot run this call: the CPU kernel has no fp8"),
        ({"precision": "int8", "backend": "tpu"}, "unknown backend 'tpu'"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named(arguments: dict[str, str], message: str) -> None:
    case = make_case(6)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(case.q, case.k, case.v, case.block_map, **arguments)  # type: ignore[arg-type]


def test_gradients_are_refused() -> None:
    case = make_case(6)
    with pytest.raises(ValueError, match="no backward pass"):
        block_sparse_attention(case.q.clone().requires_grad_(), case.k, case.v, case.block_map, precision="int8")


def test_processor_without_int8_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if _extension.load() is not None:
        pytest.skip("no C++ kernel")
    monkeypatch.setattr(_extension, "instruction_set", lambda dtype: None)
    case = make_case(7)
    with pytest.raises(ValueError, match="int8 needs AMX"):
        run(case, "int8", "cpu")
    with pytest.warns(UserWarning, match="slow reference backend, since cpu cannot run: int8 needs AMX"):
        block_sparse_attention(case.q, case.k, case.v, case.block_map, precision="int8")
    reasons = precision_reasons("int8")
    assert reasons["reference"] is None and "needs AMX" in (reasons["cpu"] or "")

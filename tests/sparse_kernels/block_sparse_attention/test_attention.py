import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from sparse_kernels import BlockMap, Summaries, _extension, block_sparse_attention
from sparse_kernels.block_sparse_attention import cpu, reference
from tests.sparse_kernels.cases import Case, brute_force, make_case, random_offsets
from tests.sparse_kernels.processors import available

# AVX-512 and real AMX run where the processor has them; their code paths are those of avx2 and amx_emulated.
NARROW = ["avx512_bf16", "amx", "amx_emulated"]  # every input is rounded to bf16
INSTRUCTIONS = ["portable", "avx2", "avx512", *NARROW]


def run(case: Case, backend: str) -> tuple[Tensor, Tensor]:
    out, lse = block_sparse_attention(
        case.q, case.k, case.v, case.block_map,
        q_order=case.q_order, kv_order=case.kv_order, return_lse=True, backend=backend,
    )  # fmt: skip
    return out, lse


def assert_close(case: Case, out: Tensor, lse: Tensor, factor: float = 1.5, bf16_products: bool = False) -> None:
    """Compare with float64; the budget is a multiple of what plain arithmetic in the case's dtype makes wrong."""
    exact, exact_lse = brute_force(case)
    plain = brute_force(case, torch.bfloat16 if bf16_products else case.q.dtype)[0].double()
    unit = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (out.double() - exact).norm() <= factor * (plain - exact).norm() + unit
    finite = exact_lse.isfinite()
    assert torch.equal(lse.isfinite(), finite)
    assert (lse[~finite] == -torch.inf).all() and (out[~finite] == 0).all()
    error = (lse[finite].double() - exact_lse[finite]).abs() / exact_lse[finite].abs().clamp(min=1)
    assert error.max() < (3e-2 if bf16_products else 5e-6)


def skip_unless_available(instructions: str) -> None:
    case = make_case(0, q_length=4, kv_length=8)
    with available(instructions):
        cpu.forward(case.q, case.k, case.v, case.block_map, None, None, 1.0, instructions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("orders", [False, True])
def test_reference_equals_brute_force(dtype: torch.dtype, orders: bool) -> None:
    case = make_case(1, dtype=dtype, orders=orders)
    assert_close(case, *run(case, "reference"))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 200])  # 200: more channels than there are tiles for
def test_cpu_kernel_equals_brute_force(instructions: str, dtype: torch.dtype, head_dim: int) -> None:
    skip_unless_available(instructions)
    for seed, orders in itertools.product(range(3), (False, True)):
        case = make_case(seed, head_dim=head_dim, dtype=dtype, orders=orders)
        arguments = (case.q, case.k, case.v, case.block_map, case.q_order, case.kv_order, head_dim**-0.5)
        out, lse = cpu.forward(*arguments, instructions)
        narrow = instructions in NARROW
        # Rounding the weights to bf16 is part of every bf16 kernel; plain arithmetic rounds the scores as well.
        assert_close(case, out, lse, bf16_products=narrow and dtype != torch.bfloat16)


@pytest.mark.parametrize(
    ("instructions", "dtype", "tokens", "faster"),
    [
        ("amx", torch.bfloat16, 2048, True),
        ("amx", torch.bfloat16, 2047, False),  # packing would cost more than it saves
        ("amx", torch.float32, 4096, False),
        ("avx512_bf16", torch.bfloat16, 16, True),
        ("avx2", torch.bfloat16, 4096, False),
    ],
)
def test_where_dense_attention_is_faster_than_sdpa(
    instructions: str, dtype: torch.dtype, tokens: int, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_extension, "instruction_set", lambda dtype: instructions)
    assert cpu.outruns_sdpa(torch.empty(1, 1, tokens, 64, dtype=dtype)) is faster
    assert not cpu.outruns_sdpa(torch.empty(1, 1, tokens, 264, dtype=dtype))


def in_falling_order(block_map: BlockMap) -> BlockMap:
    """The same map with every list the other way round."""
    places = torch.arange(block_map.indices.shape[-1])
    turned = (block_map.counts[..., None] - 1 - places).clamp(min=0).expand(block_map.indices.shape)
    return dataclasses.replace(block_map, indices=block_map.indices.gather(-1, turned))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("keep", [0.3, 0.9, 1.0])
def test_small_blocks_share_panels(instructions: str, keep: float) -> None:
    skip_unless_available(instructions)
    generator = torch.Generator().manual_seed(0)
    case = make_case(8, kv_length=700)
    offsets = torch.stack([random_offsets(700, 60, generator) for _ in range(4)])[None]
    # Visited in stretches, as clusters are that stand beside others of their kind.
    mask = (torch.rand(2, 4, 4, 12, generator=generator) < keep).repeat_interleave(5, -1)
    rising = BlockMap.from_dense(mask, case.block_map.q_offsets, offsets)
    for block_map in (rising, in_falling_order(rising)):
        arguments = (case.q, case.k, case.v, block_map, case.q_order, case.kv_order, 64**-0.5)
        out, lse = cpu.forward(*arguments, instructions)
        assert_close(dataclasses.replace(case, block_map=block_map), out, lse, bf16_products=instructions in NARROW)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_all_kept_equals_dense_attention(head_dim: int) -> None:
    q, k, v = torch.randn(3, 1, 2, 300, head_dim, generator=torch.Generator().manual_seed(0)).unbind()
    block_map = BlockMap.uniform(torch.ones(1, 1, 5, 3, dtype=torch.bool), 64, 128, 300, 300)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for backend in ("reference", "cpu"):
        assert (block_sparse_attention(q, k, v, block_map, backend=backend) - dense).abs().max() < 2e-6


def test_lse_of_parts_merges_to_the_whole() -> None:
    case = make_case(3)
    mask = case.block_map.to_dense()
    half = torch.rand(mask.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    offsets = case.block_map.q_offsets, case.block_map.kv_offsets
    maps = [BlockMap.from_dense(part, *offsets) for part in (mask & half, mask & ~half)]
    parts = [run(dataclasses.replace(case, block_map=part), "cpu") for part in maps]
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * (part - lse).exp().nan_to_num(0)[..., None] for out, part in parts)
    whole, whole_lse = run(case, "cpu")
    assert torch.allclose(merged, whole, atol=2e-6)
    finite = whole_lse.isfinite()
    assert torch.allclose(lse[finite], whole_lse[finite], atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cpu_kernel_is_deterministic(threads: int) -> None:
    case = make_case(5, q_length=400, kv_length=500)
    before = torch.get_num_threads()
    expected = run(case, "cpu")
    try:
        torch.set_num_threads(threads)
        for _ in range(200):
            assert all(torch.equal(a, b) for a, b in zip(run(case, "cpu"), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_strided_inputs_keep_their_layout() -> None:
    packed = torch.randn(2, 100, 3, 4, 64, generator=torch.Generator().manual_seed(0))
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    block_map = BlockMap.uniform(torch.ones(1, 1, 2, 2, dtype=torch.bool), 50, 50, 100, 100)
    out = block_sparse_attention(q, k, v, block_map, backend="cpu")
    assert torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, k, v), atol=2e-6)
    dense_q = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert block_sparse_attention(dense_q, k, v, block_map, backend="cpu").transpose(1, 2).is_contiguous()


def test_rows_of_queries_may_overlap() -> None:
    q = torch.randn(1, 1, 100).unfold(-1, 64, 1)
    k, v = torch.randn(2, 1, 1, 37, 64).unbind()
    block_map = BlockMap.uniform(torch.ones(1, 1, 3, 2, dtype=torch.bool), 16, 32, 37, 37)
    out = block_sparse_attention(q, k, v, block_map, backend="cpu")
    dense = torch.nn.functional.scaled_dot_product_attention(q.contiguous(), k, v)  # torch's fails on such rows, too
    assert torch.allclose(out, dense, atol=2e-6)
    m = block_map
    arguments = (q, k, v, m.counts, m.indices, m.q_offsets, m.kv_offsets, None, None, 0.1, "")
    operator = torch.ops.sparse_kernels.block_sparse_attention_cpu.default
    torch.library.opcheck(operator, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_large_and_tiny_logits(scale: float) -> None:
    case = make_case(6)
    case = dataclasses.replace(case, q=case.q * scale)
    assert_close(case, *run(case, "cpu"), factor=4)


def test_nan_and_constant_rows() -> None:
    q = torch.randn(1, 1, 40, 64)
    q[0, 0, 3] = torch.nan
    k, v = torch.ones(1, 1, 40, 64), torch.randn(1, 1, 40, 64)
    block_map = BlockMap.uniform(torch.ones(1, 1, 3, 3, dtype=torch.bool), 16, 16, 40, 40)
    out = block_sparse_attention(q, k, v, block_map, backend="cpu")
    assert out[0, 0, 3].isnan().all()
    others = torch.arange(40) != 3
    assert torch.allclose(out[0, 0, others], v.mean((0, 1, 2)).expand(39, 64), atol=1e-6)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_key_that_is_nan_of_any_bits_spoils_its_rows(instructions: str) -> None:
    skip_unless_available(instructions)
    q, k, v = torch.randn(3, 1, 1, 40, 64).unbind()
    k.view(torch.int32)[0, 0, 20, 7] = 0x7FFFFFFF
    block_map = BlockMap.uniform(torch.eye(2, dtype=torch.bool)[None, None], 16, 16, 32, 32)
    out, lse = cpu.forward(*(x[:, :, :32] for x in (q, k, v)), block_map, None, None, 0.1, instructions)
    assert out[0, 0, :16].isfinite().all() and lse[0, 0, :16].isfinite().all()
    assert out[0, 0, 16:].isnan().all() and lse[0, 0, 16:].isnan().all()


def test_one_key_rows_return_its_value() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 64, generator=torch.Generator().manual_seed(0)).unbind()
    offsets = torch.arange(6, dtype=torch.int32)
    out = block_sparse_attention(
        q, k, v, BlockMap.from_dense(torch.eye(5, dtype=torch.bool)[None, None], offsets, offsets)
    )
    assert torch.allclose(out, v, atol=1e-6)


def test_reference_has_gradients() -> None:
    case = make_case(7, batch=1, heads=2, kv_heads=1, q_length=9, kv_length=11, head_dim=4)
    inputs = [x.double().requires_grad_() for x in (case.q, case.k, case.v)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.forward(q, k, v, case.block_map, case.q_order, case.kv_order, 0.5)[0]

    out = attend(*inputs)
    case64 = dataclasses.replace(case, q=inputs[0], k=inputs[1], v=inputs[2])
    scaled = dataclasses.replace(case64, q=case64.q * 0.5 * 4**0.5)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    expected = torch.autograd.grad(brute_force(scaled)[0].square().sum(), inputs)
    for ours, theirs in zip(grads, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_kernel_without_gradients_says_so() -> None:
    case = make_case(7)
    q = case.q.clone().requires_grad_()
    with pytest.raises(ValueError, match="backend cpu cannot run this call: the C.. kernel has no backward pass"):
        block_sparse_attention(q, case.k, case.v, case.block_map, backend="cpu")
    with torch.no_grad():
        out = block_sparse_attention(q, case.k, case.v, case.block_map, backend="cpu")
    assert (block_sparse_attention(q, case.k, case.v, case.block_map) - out).abs().max() < 1e-5
    block_sparse_attention(q, case.k, case.v, case.block_map).sum().backward()
    assert q.grad is not None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's own forward mode
def test_forward_mode_goes_through_the_reference() -> None:
    case = make_case(7, q_length=20, kv_length=24, head_dim=16)
    primals, options = (case.q, case.k, case.v), {"q_order": case.q_order, "kv_order": case.kv_order}
    tangents = tuple(torch.randn_like(x) for x in primals)
    means = Summaries(*torch.randn(2, 1, 1, 6, 16).unbind(), torch.zeros(1, 1, 6))

    def derivative(**more: object) -> tuple[Tensor, Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return block_sparse_attention(q, k, v, case.block_map, **options, **more)

        return torch.func.jvp(attend, primals, tangents)

    for more in ({}, {"summaries": means}):
        found, expected = derivative(**more), derivative(backend="reference", **more)
        assert all(map(torch.equal, found, expected)) and expected[1].abs().max() > 0.1
    with pytest.raises(ValueError, match="backend cpu cannot run this call: the C.. kernel has no forward-mode"):
        derivative(backend="cpu")
    with pytest.raises(ValueError, match="backend cpu has no backward pass and no forward-mode derivative"):
        derivative(backend="cpu", summaries=means)
    with pytest.raises(ValueError, match="precision 'int8' has no backward pass and no forward-mode derivative"):
        derivative(precision="int8")
    uniform = BlockMap.uniform(torch.ones(1, 1, 1, 1, dtype=torch.bool), 32, 32, 20, 24)
    with pytest.raises(ValueError, match="backend flex cannot run this call: FlexAttention has no forward-mode"):
        torch.func.jvp(lambda *rows: block_sparse_attention(*rows, uniform, backend="flex"), primals, tangents)


def test_rows_that_visit_nothing_are_zero_whatever_they_hold() -> None:
    q, k, v = torch.randn(3, 1, 1, 8, 16, dtype=torch.float32).unbind()
    q = q.clone()
    q[0, 0, 5] = torch.inf
    q.requires_grad_()
    block_map = BlockMap.uniform(torch.tensor([[[[True], [False]]]]), 4, 8, 8, 8)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        out, lse = block_sparse_attention(q, k, v, block_map, return_lse=True)
    finally:
        torch.set_default_dtype(before)
    assert (out[:, :, 4:] == 0).all() and (out[:, :, :4] != 0).any()
    assert (lse[:, :, 4:] == -torch.inf).all() and lse.dtype == torch.float32
    out.sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


def test_opcheck() -> None:
    if _extension.load() is not None:
        pytest.skip("no C++ kernel")
    case = make_case(8, q_length=20, kv_length=24)
    m = case.block_map
    torch.library.opcheck(
        torch.ops.sparse_kernels.block_sparse_attention_cpu.default,
        (case.q, case.k, case.v, m.counts, m.indices, m.q_offsets, m.kv_offsets, case.q_order, case.kv_order, 0.1, ""),
    )


def without_blocks(queries: int, keys: int) -> BlockMap:
    mask = torch.zeros(1, 1, queries, keys, dtype=torch.bool)
    return BlockMap.from_dense(mask, *(torch.zeros(blocks + 1, dtype=torch.int32) for blocks in (queries, keys)))


def bad_cases() -> dict[str, tuple[dict[str, object], str]]:
    case = make_case(9)
    m = case.block_map
    assert case.q_order is not None and case.kv_order is not None
    falling = m.q_offsets[..., [0, 3, 2, 1, 4]]
    return {
        "shape of k": ({"k": case.k[..., :32]}, "k and v must be of one shape"),
        "head_dim": ({"k": case.k[..., :32], "v": case.v[..., :32]}, "agree on batch and head_dim"),
        "dtype": ({"q": case.q.double()}, "share one of float32, bfloat16, float16"),
        "nothing": ({"q": case.q[:, :, :0]}, "q must be a tensor .b h rows d. and not empty"),
        "devices": ({"k": case.k.to("meta"), "v": case.v.to("meta")}, "k is on meta, q on cpu: move it there"),
        "device of the map": ({"kv_order": case.kv_order.to("meta")}, "kv_order is on meta, the tokens on cpu"),
        "no map": ({"block_map": None}, "block_map must be a BlockMap, got NoneType: BlockMap.from_dense"),
        "no query blocks": ({"block_map": without_blocks(0, 6)}, "block_map must have .* got 0 and 6: rows that visit"),
        "no key blocks": ({"block_map": without_blocks(4, 0)}, "block_map must have .* got 4 and 0: rows that visit"),
        "mask": ({"block_map": m.to_dense()}, "block_map must be a BlockMap, got torch.bool"),
        "order": ({"q_order": case.q_order[..., :-1]}, "q_order must be int64"),
        "order twice": ({"kv_order": torch.zeros_like(case.kv_order)}, "kv_order must hold every row 0 to 149 once"),
        "order range": ({"q_order": case.q_order + 1}, "q_order must hold every row 0 to 130 once"),
        "offsets": ({"block_map": dataclasses.replace(m, kv_offsets=m.kv_offsets - 1)}, "kv_offsets must rise from 0"),
        "falling": ({"block_map": dataclasses.replace(m, q_offsets=falling)}, "q_offsets must rise from 0 .* 131"),
        "index": ({"block_map": dataclasses.replace(m, indices=m.indices + 3)}, "indices must name key blocks 0 to 5"),
        "below 0": (
            {"block_map": dataclasses.replace(m, indices=m.indices - 1)},
            "indices must name key blocks 0 to 5",
        ),
        "twice": ({"block_map": dataclasses.replace(m, indices=m.indices * 0)}, "name a key block once for each query"),
        "count": (
            {"block_map": dataclasses.replace(m, counts=m.counts + 9)},
            "counts must lie between 0 and .* = 6, got [0-9-]+$",
        ),
        "negative": (
            {"block_map": dataclasses.replace(m, counts=m.counts - 4)},
            "counts must lie between 0 and .* = 6, got [0-9-]+$",
        ),
    }


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", list(bad_cases()))
def test_bad_input_is_named(name: str, backend: str) -> None:
    changes, message = bad_cases()[name]
    case = make_case(9)
    arguments = {"q": case.q, "k": case.k, "v": case.v, "block_map": case.block_map, "q_order": case.q_order}
    arguments |= {"kv_order": case.kv_order, "backend": backend} | changes
    with pytest.raises(ValueError, match=f"^[a-z_, ]*{message}"):  # nothing but words before: no file, no function
        block_sparse_attention(**arguments)  # type: ignore[arg-type]


def test_unknown_backends_and_instructions_are_named() -> None:
    case = make_case(9)
    with pytest.raises(ValueError, match="^unknown backend 'tpu'; accepted: cpu, triton, flex, reference"):
        block_sparse_attention(case.q, case.k, case.v, case.block_map, backend="tpu")
    with available(), pytest.raises(ValueError, match="^unknown instruction set mmx; accepted: .*portable"):
        cpu.forward(case.q, case.k, case.v, case.block_map, None, None, 1.0, "mmx")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # on purpose, see flex.py
def test_flex_equals_reference() -> None:
    q, k, v = torch.randn(3, 1, 2, 256, 64, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0, 1] = False
    block_map = BlockMap.uniform(mask, 64, 64, 256, 256)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2))[None, None]
    case = Case(q, k, v, block_map, order, order)
    assert_close(case, *run(case, "flex"), factor=4)


def test_tiny_numbers_stay_what_they_are_outside_of_the_kernels() -> None:
    case = make_case(0)
    run(case, "cpu")
    tiny = torch.full((1 << 20,), 1e-40)  # enough for every thread to take a part
    assert (tiny * 0.5 > 0).all()

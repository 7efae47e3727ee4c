from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sparse_kernels import _extension, antidiagonal_scores, block_mass, pooled
from sparse_kernels.block_map import block_of_position, uniform_offsets
from sparse_kernels.block_scores import cpu, reference
from tests.sparse_kernels.cases import random_offsets
from tests.sparse_kernels.processors import available

INSTRUCTIONS = ["portable", "avx2", "avx512"]
NARROW = ["avx512_bf16", "amx", "amx_emulated"]  # of inputs in bf16 they lose nothing
EVERY_BACKEND = ["reference", "cpu"]


@dataclass(frozen=True)
class Case:
    """One call of block_mass."""

    q: Tensor
    k: Tensor
    lse: Tensor
    q_offsets: Tensor
    kv_offsets: Tensor
    q_order: Tensor | None
    kv_order: Tensor | None

    def run(self, backend: str, **options: float) -> Tensor:
        orders = {"q_order": self.q_order, "kv_order": self.kv_order}
        return block_mass(
            self.q, self.k, self.lse, self.q_offsets, self.kv_offsets, backend=backend, **orders, **options
        )


def make_case(
    seed: int,
    lengths: tuple[int, int] = (131, 150),
    head_dim: int = 40,
    dtype: torch.dtype = torch.float32,
    orders: bool = True,
) -> Case:
    """Return blocks of all sizes per head, grouped queries and the true LSE."""
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(2, 4, lengths[0], head_dim, generator=generator) * 2).to(dtype)
    k = torch.randn(2, 2, lengths[1], head_dim, generator=generator).to(dtype)

    def per_head(length: int, blocks: int) -> Tensor:
        return torch.stack([random_offsets(length, blocks, generator) for _ in range(4)])[None]

    def order(length: int) -> Tensor | None:
        rows = [torch.randperm(length, generator=generator) for _ in range(8)]
        return torch.stack(rows).view(2, 4, length) if orders else None

    lse = scores_of(q, k).logsumexp(-1).float()
    return Case(q, k, lse, per_head(lengths[0], 4), per_head(lengths[1], 7), order(lengths[0]), order(lengths[1]))


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5


def brute_force(case: Case) -> Tensor:
    weights = (scores_of(case.q, case.k) - case.lse.double()[..., None]).exp()
    if case.q_order is not None:
        weights = weights.gather(2, case.q_order[..., None].expand(weights.shape))
    if case.kv_order is not None:
        weights = weights.gather(3, case.kv_order[..., None, :].expand(weights.shape))
    sides = []
    for offsets, length in ((case.q_offsets, weights.shape[2]), (case.kv_offsets, weights.shape[3])):
        block = block_of_position(offsets, length).expand(2, 4, -1)
        sides.append(torch.nn.functional.one_hot(block, offsets.shape[-1] - 1).double())
    return sides[0].mT @ weights @ sides[1]


def assert_close(mass: Tensor, exact: Tensor, bound: float = 1e-5) -> None:
    assert mass.dtype == torch.float32 and mass.shape == exact.shape
    assert ((mass - exact).abs() <= bound * exact + 1e-6).all()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("orders", [False, True])
def test_mass_equals_brute_force(backend: str, dtype: torch.dtype, orders: bool) -> None:
    case = make_case(0, dtype=dtype, orders=orders)
    mass = case.run(backend)
    assert_close(mass, brute_force(case))
    assert torch.allclose(mass.sum(-1), case.q_offsets.diff().float().expand(2, 4, -1), atol=1e-4)


@pytest.mark.parametrize("instructions", [*INSTRUCTIONS, *NARROW])
@pytest.mark.parametrize(("lengths", "head_dim"), [((1, 1), 1), ((97, 33), 16), ((300, 700), 80), ((64, 1500), 128)])
def test_every_instruction_set_and_odd_size(instructions: str, lengths: tuple[int, int], head_dim: int) -> None:
    case = make_case(1, lengths, head_dim, torch.bfloat16 if instructions in NARROW else torch.float32)
    tensors = (case.q, case.k, case.lse, case.q_offsets, case.kv_offsets, case.q_order, case.kv_order)
    with available(instructions):
        mass = cpu.block_mass(*tensors, head_dim**-0.5, instructions)
    assert_close(mass, brute_force(case))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_shared_offsets_and_orders(backend: str) -> None:
    case = make_case(2)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))[None, None]
    shared = replace(case, q_offsets=case.q_offsets[:, :1], q_order=None, kv_order=order)
    expected = brute_force(replace(shared, kv_order=order.expand(2, 4, -1)))
    assert_close(shared.run(backend), expected)
    assert_close(replace(shared, q_offsets=case.q_offsets[0, 0].long()).run(backend), expected)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_scale_and_unusual_lse(backend: str) -> None:
    case = make_case(3, orders=False)
    assert_close(case.run(backend, scale=case.q.shape[-1] ** -0.5), brute_force(case))
    case.lse[:, :, 5] = torch.inf  # left out
    assert_close(case.run(backend), brute_force(case))
    whole = replace(case, q_offsets=torch.tensor([0, 131]), kv_offsets=torch.tensor([0, 150]))
    assert torch.allclose(whole.run(backend), torch.tensor(130.0), atol=1e-3)
    case.lse[0, 0, 9] = -torch.inf  # a row that kept nothing has no finite mass
    block = block_of_position(case.q_offsets, 131)[0, 0, 9]
    filled = case.kv_offsets[0, 0].diff() > 0
    assert case.run(backend)[0, 0, block, filled].isinf().all()
    case.lse[0, 0, 9] = torch.nan
    assert case.run(backend)[0, 0, block, filled].isnan().all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_nan_of_any_bits_stays_nan(instructions: str) -> None:
    case = make_case(3, orders=False)
    case.k.view(torch.int32)[0, 0, 7, 3] = 0x7FFFFFFF
    case.lse.view(torch.int32)[1, 2, 9] = 0x7FFFFFFF
    with available(instructions):
        mass = cpu.block_mass(*vars(case).values(), 40**-0.5, instructions)
    assert torch.equal(mass.isnan(), case.run("reference").isnan()) and mass.isnan().any() and not mass.isnan().all()


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = make_case(4, (700, 900))
    expected = case.run("cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5) * 50:
            torch.set_num_threads(threads)
            assert torch.equal(case.run("cpu"), expected)
    finally:
        torch.set_num_threads(before)


def test_strided_inputs() -> None:
    case = make_case(5)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k))
    assert torch.equal(replace(case, q=q, k=k).run("cpu"), case.run("cpu"))
    assert torch.equal(replace(case, q=q.mT.contiguous().mT).run("cpu"), case.run("cpu"))


def test_opcheck() -> None:
    if _extension.load() is not None:
        pytest.skip("no C++ kernel")
    case = make_case(6, (20, 30), 8)
    tensors = (case.q, case.k, case.lse, case.q_offsets, case.kv_offsets, case.q_order, case.kv_order)
    torch.library.opcheck(torch.ops.sparse_kernels.block_mass_cpu.default, (*tensors, 0.3, ""))


def antidiagonals_by_hand(q: Tensor, k: Tensor, block: int, stride: int, causal: bool) -> Tensor:
    """Follow the definition pair by pair: sum the antidiagonal of each tile, softmax, sum the blocks."""
    scores = scores_of(q, k)
    rows, columns = (-(-length // stride) for length in scores.shape[2:])
    tiles = torch.zeros(*scores.shape[:2], rows, columns, dtype=torch.float64)
    for i in range(scores.shape[2]):
        for t in range(columns):
            j = t * stride + stride - 1 - i % stride  # the key that meets this query on the antidiagonal
            if j < scores.shape[3]:
                tiles[:, :, i // stride, t] += scores[:, :, i, j] / stride
    if causal:
        tiles = tiles.masked_fill(torch.ones(rows, columns, dtype=torch.bool).triu(1), -torch.inf)
    weights = tiles.softmax(-1)
    per = block // stride
    padded = torch.nn.functional.pad(weights, (0, -columns % per, 0, -rows % per))
    return padded.unflatten(-1, (-1, per)).sum(-1).unflatten(2, (-1, per)).sum(3)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "stride"), [(64, 4), (70, 4), (33, 8), (5, 1), (40, 16)])
def test_antidiagonal_scores_equal_their_definition(backend: str, causal: bool, length: int, stride: int) -> None:
    case = make_case(7, (length, length), 16)
    scores = antidiagonal_scores(case.q, case.k, 16, stride, causal=causal, backend=backend)
    assert_close(scores, antidiagonals_by_hand(case.q, case.k, 16, stride, causal))


def test_antidiagonal_padding_gets_nothing() -> None:
    case = make_case(8, (128, 96), 16, torch.bfloat16)
    whole = antidiagonal_scores(case.q, case.k, 32, 8)
    assert whole.shape == (2, 4, 4, 3) and torch.allclose(whole.sum(-1), torch.tensor(4.0), atol=1e-5)
    short = antidiagonal_scores(case.q, case.k[:, :, :40], 32, 8)
    assert torch.allclose(short.sum(-1), torch.tensor(4.0), atol=1e-5)
    assert torch.allclose(antidiagonal_scores(case.q[:, :, :104], case.k, 32, 8).sum(-1)[..., 3], torch.tensor(1.0))


def test_antidiagonals_of_bfloat16_are_near_those_of_its_values() -> None:
    case = make_case(4, (256, 256), 64, torch.bfloat16)
    scores = antidiagonal_scores(case.q, case.k, 32, 8, backend="cpu")
    exact = antidiagonal_scores(case.q.float(), case.k.float(), 32, 8, backend="reference")
    assert (scores - exact).abs().max() < 2e-2 * exact.max()
    assert torch.allclose(scores.sum(-1), exact.sum(-1), atol=1e-4)


def test_a_block_longer_than_all_tokens_is_one_block() -> None:
    case = make_case(8)
    scores = antidiagonal_scores(case.q, case.k, 2**40, 8)
    assert torch.equal(scores, antidiagonal_scores(case.q, case.k, 152, 8)) and scores.shape == (2, 4, 1, 1)


def test_long_blocks_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case, rows, score = make_case(9, (300, 200), 8), [], reference._by_key_block
    whole = antidiagonal_scores(case.q, case.k, 64, 2, backend="reference")
    monkeypatch.setattr(reference, "ROWS", 10)
    monkeypatch.setattr(
        reference, "_by_key_block", lambda q, part, *rest: rows.append(part.stop - part.start) or score(q, part, *rest)
    )
    assert_close(antidiagonal_scores(case.q, case.k, 64, 2, backend="reference"), whole)
    assert max(rows) == 10 and sum(rows) == 8 * 160


def test_antidiagonals_in_several_pieces() -> None:
    case = make_case(9, (2400, 600), 8)
    whole = antidiagonal_scores(case.q, case.k, 12, 2)
    part = antidiagonal_scores(case.q[:, :, 1200:], case.k, 12, 2)
    assert torch.allclose(whole[:, :, 100:], part, atol=1e-6)


def test_pooled_is_the_mean_of_each_block() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 50, 8, generator=generator).bfloat16()
    offsets = torch.stack([random_offsets(50, 6, generator) for _ in range(4)])[None]
    order = torch.randperm(50, generator=generator)[None, None]
    for means, chosen, rows in (
        (pooled(x, offsets), offsets.expand(2, -1, -1), x),
        (pooled(x, offsets, order), offsets.expand(2, -1, -1), x[:, :, order[0, 0]]),
        (pooled(x, uniform_offsets(50, 16)), uniform_offsets(50, 16).expand(2, 4, -1), x),
    ):
        assert means.dtype == torch.float32
        for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
            ends = chosen[b, h].tolist()
            for i in range(len(ends) - 1):
                block = rows[b, h, ends[i] : ends[i + 1]].double()
                expected = block.mean(0) if len(block) else torch.zeros(8)
                assert torch.allclose(means[b, h, i].double(), expected.double(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's own forward mode
def test_means_have_no_tangent_that_is_silently_zero() -> None:
    x, offsets = torch.randn(1, 1, 20, 8), torch.tensor([0, 5, 20])
    with pytest.raises(NotImplementedError, match="segment_reduce"):  # torch's, which has no formula for it yet
        torch.func.jvp(lambda rows: pooled(rows, offsets), (x,), (torch.ones_like(x),))


def bad_cases() -> dict[str, tuple[dict[str, object], str]]:
    case = make_case(10)
    return {
        "shape": ({"q": case.q[0]}, "q must be a tensor .b h rows d. and not empty"),
        "head_dim": ({"k": case.k[..., :8]}, "q and k must agree on batch and head_dim"),
        "heads": ({"k": case.k.repeat(1, 2, 1, 1)[:, :3]}, "q's heads be a multiple of k's"),
        "dtype": ({"q": case.q.double()}, "share one of float32, bfloat16, float16"),
        "lse": ({"lse": case.lse[..., 1:]}, "lse must be a floating-point tensor of shape .2, 4, 131."),
        "offsets start": ({"q_offsets": case.q_offsets + 1}, "q_offsets must rise from 0 to the sequence length 131"),
        "offsets end": ({"kv_offsets": torch.tensor([0, 149])}, "kv_offsets must rise from 0 .* 150"),
        "offsets fall": ({"kv_offsets": torch.tensor([0, 90, 80, 150])}, "kv_offsets must rise"),
        "offsets type": ({"q_offsets": torch.tensor([0.0, 131.0])}, "q_offsets must be int32 or int64"),
        "offsets heads": ({"q_offsets": case.q_offsets[:, :3]}, "q_offsets must start with .1 or 2, 1 or 4."),
        "order type": ({"q_order": torch.arange(131)}, "q_order must be int64 of shape"),
        "order twice": (
            {"kv_order": torch.zeros(1, 1, 150, dtype=torch.int64)},
            "kv_order must hold every row 0 to 149",
        ),
        "order range": ({"q_order": torch.arange(131)[None, None] + 1}, "q_order must hold every row 0 to 130"),
        "backend": ({"backend": "tpu"}, "unknown backend 'tpu'; accepted: cpu, triton, reference"),
    }


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", list(bad_cases()))
def test_bad_input_is_named(name: str) -> None:
    changes, message = bad_cases()[name]
    case = make_case(10)
    with pytest.raises(ValueError, match=message):
        block_mass(**(vars(case) | changes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_antidiagonals_and_means_are_named() -> None:
    case = make_case(11)
    with pytest.raises(ValueError, match="block must be a multiple of stride"):
        antidiagonal_scores(case.q, case.k, 64, 12)
    with pytest.raises(ValueError, match="stride at most 4096, got block 8192 and stride 8192"):
        antidiagonal_scores(case.q, case.k, 8192, 8192)
    with pytest.raises(ValueError, match="causal needs q and k of one length, got 131 and 150"):
        antidiagonal_scores(case.q, case.k, 64, 8, causal=True)
    with pytest.raises(ValueError, match="offsets must rise from 0 to the sequence length 131"):
        pooled(case.q, torch.tensor([0, 130]))
    with pytest.raises(ValueError, match="x must be one of float32, bfloat16, float16, float64, got torch.int32"):
        pooled(case.q.int(), torch.tensor([0, 131]))


def test_a_failed_allocation_says_so() -> None:
    x = torch.zeros(1, 1, 1, 1).expand(2**25, 2**20, 1, 1)
    with (
        available(),
        pytest.raises(MemoryError, match="not enough memory for this call of sparse_kernels; give it fewer"),
    ):
        pooled(x, torch.tensor([0, 1]))

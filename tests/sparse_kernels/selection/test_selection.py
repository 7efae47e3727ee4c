"""Ranks and budgets, against a sort and a loop."""

from __future__ import annotations

import pytest
import torch

from sparse_kernels import _extension, fill_budget, rank_entries
from sparse_kernels.selection import reference

EVERY_BACKEND = ["reference", "cpu"]


def make_scores(rows: int, entries: int) -> torch.Tensor:
    """Return scores with ties, infinite ones and a negative zero."""
    scores = torch.randn(3, rows, entries, generator=torch.Generator().manual_seed(entries)).mul_(4).round_()
    scores[0, 0, 0], scores[1, 0, -1] = torch.inf, -torch.inf
    scores[2, 0, 0], scores[2, 0, -1] = 0.0, -0.0
    return scores


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize(("rows", "entries"), [(1, 1), (4, 7), (2, 300)])
def test_ranks_are_those_of_a_stable_sort(backend: str, rows: int, entries: int) -> None:
    scores = make_scores(rows, entries)
    ranks, _ = rank_entries(scores, backend=backend)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    assert torch.equal(ranks.long(), order.argsort(-1))
    masses = scores.clamp(-8, 8).exp()
    ranks, before = rank_entries(masses.mT.contiguous().mT, backend=backend)
    ahead = ranks[..., None, :] < ranks[..., None]
    assert torch.allclose(before.double(), (ahead * masses[..., None, :].double()).sum(-1), rtol=1e-6)


def test_sums_in_integers_are_as_exact_as_others() -> None:
    """What CUDA takes where deterministic algorithms are asked for: it has no other sums then."""
    masses = make_scores(4, 300).clamp(-8, 8).exp().sort(descending=True).values
    sums = reference.sums_in_integers(masses)
    assert torch.allclose(sums.double(), masses.double().cumsum(-1), rtol=1e-6) and sums.dtype == torch.float32
    assert not reference.sums_in_integers(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("entries", [60, 5000])  # the C++ of many looks at their first bits first
def test_a_budget_is_spent_in_order(backend: str, crossing: bool, entries: int) -> None:
    scores = make_scores(5, entries)
    areas = torch.randint(0, 9, (1, 5, entries), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    budgets = torch.randint(0, entries * 13 // 3, (3, 5, 1), generator=torch.Generator().manual_seed(1))
    budgets[0, 1], budgets[0, 2] = 0, 20 * entries
    kept = fill_budget(scores, areas, budgets, crossing=crossing, backend=backend)
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        spent, budget, expected = 0, int(budgets[i, j]), set()
        areas_of, scores_of = areas[0, j].tolist(), scores[i, j].tolist()
        for at in sorted(range(entries), key=lambda at: (-scores_of[at], at)):
            if spent >= budget if crossing else 2 * spent + areas_of[at] > 2 * budget:
                break
            spent += areas_of[at]
            expected.add(at)
        assert set(kept[i, j].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("crossing", [False, True])
def test_a_budget_without_a_limit_keeps_all(backend: str, crossing: bool) -> None:
    scores = make_scores(2, 30)
    for budget in (2**63 - 1, 2**62):
        kept = fill_budget(scores, torch.ones(30).long() * 2**40, budget, crossing=crossing, backend=backend)
        assert kept.all()


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_budget_below_nothing_keeps_none(unchecked_shapes: None, backend: str, crossing: bool) -> None:
    scores, areas = torch.rand(2, 3), torch.tensor([[2, 1, 3]])
    for budget in (-1, 1 - 2**63, torch.tensor([[-5], [1 - 2**63]])):
        assert not fill_budget(scores, areas, budget, crossing=crossing, backend=backend).any()
    one = fill_budget(scores, areas, torch.tensor([[True], [False]]), crossing=True, backend=backend)
    assert one.sum(-1).tolist() == [1, 0]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_of_either_sign_comes_first(backend: str) -> None:
    scores = torch.tensor([[3.0, 0.0, torch.inf, 0.0, 7.0]])
    scores.view(torch.int32)[0, [1, 3]] = torch.tensor([0xFFC00000 - 2**32, 0x7FFFFFFF], dtype=torch.int32)
    ranks, _ = rank_entries(scores, backend=backend)
    assert ranks.tolist() == [[4, 0, 2, 1, 3]]
    kept = fill_budget(scores, torch.ones_like(ranks), 2, backend=backend)
    assert kept.tolist() == [[False, True, False, True, False]]


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    scores, areas, before = torch.rand(50, 90), torch.randint(1, 9, (50, 90)), torch.get_num_threads()
    first = *rank_entries(scores), fill_budget(scores, areas, 150)
    try:
        for threads in (1, 2, 3, 5) * 5:
            torch.set_num_threads(threads)
            again = *rank_entries(scores), fill_budget(scores, areas, 150)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


def test_opcheck() -> None:
    if reason := _extension.load():
        pytest.skip(reason)
    scores, ops = torch.rand(3, 20), torch.ops.sparse_kernels
    areas, budgets = torch.randint(1, 9, (3, 20)), torch.full((3,), 30)
    torch.library.opcheck(ops.rank_entries_cpu.default, (scores,))
    torch.library.opcheck(ops.fill_budget_cpu.default, (scores, areas, budgets, False))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_no_backend_has_gradients(backend: str) -> None:
    scores = torch.rand(2, 5, requires_grad=True)
    assert not rank_entries(scores, backend=backend)[1].requires_grad


def test_other_types_are_sorted_by_torch() -> None:
    scores = make_scores(2, 20)
    assert torch.equal(rank_entries(scores.double())[0], rank_entries(scores)[0])
    with pytest.raises(ValueError, match="backend cpu cannot run this call: scores are torch.float64, not float32"):
        rank_entries(scores.double(), backend="cpu")


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_refused() -> None:
    scores, areas = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64)
    for wrong in ("x", torch.zeros(3, dtype=torch.int64), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="scores must be rows of floating-point numbers"):
            rank_entries(wrong)  # type: ignore[arg-type]
    for wrong in (areas.float(), areas[:, :2], areas.expand(4, 2, 3), None):
        with pytest.raises(ValueError, match=r"areas must be whole numbers that expand to \(2, 3\)"):
            fill_budget(scores, wrong, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="areas must not be negative, got -1"):
        fill_budget(torch.zeros(2, 3), torch.tensor([1, -1, 2]), 4)
    with pytest.raises(ValueError, match=r"budget must be whole numbers that expand to \(2, 1\)"):
        fill_budget(scores, areas, areas)

"""The error of centroids and their answers, against brute force in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sparse_kernels import Clusters, _extension, centroid_log_error, kmeans, merge_centroids, pooled
from sparse_kernels.centroids import cpu, reference
from sparse_kernels.centroids.reference import take_rows
from tests.sparse_kernels.processors import available

INSTRUCTIONS = ["portable", "avx2", "avx512"]
BACKENDS = ["reference", "cpu"]
TILES = ["amx", "amx_emulated"]
SCALE = 0.15


@dataclass(frozen=True)
class Case:
    """Tokens in clusters; one cluster of keys is empty, another holds one key."""

    q: Tensor
    k: Tensor
    v: Tensor
    queries: Clusters
    keys: Clusters
    values: Tensor

    def log_error(self, backend: str) -> Tensor:
        return centroid_log_error(
            self.queries.centroids, self.k, self.v, self.keys, self.values, scale=SCALE, backend=backend
        )

    def out(self) -> tuple[Tensor, Tensor]:
        """Return attention over the first hundred keys, and its LSE."""
        scores = self.q.double() @ self.k[:, :, :100].double().transpose(-1, -2) * SCALE
        out = scores.softmax(-1) @ self.v[:, :, :100].double()
        return out.to(self.q.dtype), scores.logsumexp(-1).float()

    def weights(self) -> Tensor:
        """Return log n for two of three clusters, -inf for the others."""
        weights = self.keys.sizes.log()[..., None, :].repeat(1, 1, self.queries.sizes.shape[2], 1)
        weights[..., ::3] = -torch.inf
        return weights

    def merged(self, backend: str) -> Tensor:
        arguments = (*self.out(), self.queries, self.weights(), self.keys.centroids, self.values)
        return merge_centroids(self.q, *arguments, scale=SCALE, backend=backend)


def make_case(
    head_dim: int = 40,
    dtype: torch.dtype = torch.float32,
    strided: bool = False,
    spread: float = 1,
    tokens: int = 211,
    clusters: tuple[int, int] = (18, 37),
) -> Case:
    generator = torch.Generator().manual_seed(head_dim)
    shape = (2, tokens, 3, head_dim) if strided else (2, 3, tokens, head_dim)
    q, k, v = (spread * torch.randn(3, *shape, generator=generator)).to(dtype)
    if strided:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    starts = k[:, :, : clusters[1]].float().clone()
    starts[:, :, 5] = 1e4  # nobody's nearest
    queries = kmeans(q, q[:, :, : clusters[0]].float(), iterations=3, backend="reference")
    keys = kmeans(k, starts, iterations=2, backend="reference")
    return Case(q, k, v, queries, keys, pooled(take_rows(v, keys.order), keys.offsets))


def brute_log_error(case: Case) -> Tensor:
    q, k_c, v_c = (x.double() for x in (case.queries.centroids, case.keys.centroids, case.values))
    labels = case.keys.labels.long()
    exponent = q @ (case.k.double() - take_rows(k_c, labels)).transpose(-1, -2) * SCALE
    v, held = case.v.double(), exponent.clamp(min=0)
    each = (exponent - held).exp()[..., None] * v[:, :, None]
    each -= (-held).exp()[..., None] * take_rows(v_c, labels)[:, :, None]
    member = torch.nn.functional.one_hot(labels, k_c.shape[2]).double()
    terms = each.square().sum(-1).log() + 2 * held
    return (terms[..., None] + member.log()[:, :, None]).logsumexp(-2)


def brute_merged(case: Case) -> Tensor:
    out, lse = case.out()
    logits = case.q.double() @ case.keys.centroids.double().transpose(-1, -2) * SCALE
    logits = logits + take_rows(case.weights().double(), case.queries.labels)
    both = torch.cat([lse.double()[..., None], logits], -1).softmax(-1)
    return both[..., :1] * out.double() + both[..., 1:] @ case.values.double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_equal_brute_force(backend: str, head_dim: int, dtype: torch.dtype) -> None:
    case = make_case(head_dim, dtype)
    assert (case.keys.sizes == 0).any() and (case.keys.sizes == 1).any()
    expected = brute_log_error(case).exp()
    assert (case.log_error(backend).exp() - expected).abs().max() < 2e-5 * expected.max()
    merged = brute_merged(case)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    result = case.merged(backend)
    assert result.dtype == dtype and (result - merged).abs().max() < rounding * merged.abs().max()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_instruction_set_gives_the_same(instructions: str) -> None:
    case = make_case()
    with available(instructions):
        error = cpu.centroid_log_error(
            case.queries.centroids, case.k, case.v, case.keys, case.values, SCALE, instructions=instructions
        )
    arguments = (case.q, *case.out(), case.queries, case.weights(), case.keys.centroids, case.values, SCALE)
    assert torch.allclose(error, case.log_error("reference"), atol=1e-4)
    assert (cpu.merge_centroids(*arguments, instructions=instructions) - brute_merged(case)).abs().max() < 1e-5


@pytest.mark.parametrize("instructions", TILES)
@pytest.mark.parametrize(("head_dim", "spread"), [(3, 1), (40, 1), (64, 2), (130, 60)])
def test_errors_in_tiles_are_those_of_rounded_exponents(instructions: str, head_dim: int, spread: float) -> None:
    case = make_case(head_dim, torch.bfloat16, spread=spread)
    arguments = (case.queries.centroids, case.k, case.v, case.keys, case.values, SCALE)
    with available(instructions):
        error = cpu.centroid_log_error(*arguments, "bfloat16", instructions=instructions)
    expected = brute_log_error(case)
    assert torch.equal(error.isfinite(), expected.isfinite())
    # An exponent is a sum of products of numbers that are each rounded by 2^-9 of their size.
    rest = case.k.double() - take_rows(case.keys.centroids.double(), case.keys.labels)
    bound = case.queries.centroids.abs().max() * rest.abs().sum(-1).max() * SCALE * 2**-8
    assert (error - expected).nan_to_num(0).abs().max() < 2 * bound
    exact = case.log_error("cpu")
    assert (error - exact).nan_to_num(0).abs().mean() < 2**-7 * spread**2 * head_dim**0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    strided = make_case(strided=True)
    q, k, v = (x.contiguous() for x in (strided.q, strided.k, strided.v))
    straight = replace(strided, q=q, k=k, v=v)
    assert torch.equal(strided.log_error(backend), straight.log_error(backend))
    assert torch.equal(strided.merged(backend), straight.merged(backend))


def test_rows_of_the_output_may_overlap() -> None:
    q = torch.randn(1, 1, 37, 64)
    queries, keys = (kmeans(q, q[:, :, :count].clone(), iterations=2) for count in (3, 5))
    out, lse = torch.randn(1, 1, 100).unfold(-1, 64, 1), torch.randn(1, 1, 37)
    rest = (lse, queries, torch.zeros(1, 1, 3, 5), keys.centroids, keys.centroids)
    merged = [
        merge_centroids(q, given, *rest, scale=SCALE, backend=backend)
        for backend, given in (("cpu", out), ("cpu", out.contiguous()), ("reference", out))
    ]
    assert torch.equal(merged[0], merged[1]) and torch.allclose(merged[0], merged[2], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_and_rows_without_any_key_stay_finite(backend: str) -> None:
    case = make_case(spread=60)
    exponents = 60**2 * 40 * SCALE  # that a rounding of float32 is a share of, at most
    expected, log_error = brute_log_error(case), case.log_error(backend)
    assert torch.equal(log_error.isfinite(), expected.isfinite()) and expected.max() > 2000
    assert (log_error - expected).nan_to_num(0).abs().max() < 2 * torch.finfo(torch.float32).eps * exponents
    assert case.merged(backend).isfinite().all()
    out, lse = case.out()
    arguments = (torch.zeros_like(out), torch.full_like(lse, -torch.inf), case.queries, case.weights())
    alone = merge_centroids(case.q, *arguments, case.keys.centroids, case.values, scale=SCALE, backend=backend)
    logits = case.q.double() @ case.keys.centroids.double().transpose(-1, -2) * SCALE
    expected = (logits + take_rows(case.weights().double(), case.queries.labels)).softmax(-1) @ case.values.double()
    assert (alone - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_answers_the_output_stays(backend: str) -> None:
    case = make_case()
    out, lse = case.out()
    weights = torch.full_like(case.weights(), -torch.inf)
    weights[:, 1] = 0
    lse[0] = -torch.inf
    arguments = (case.q, out, lse, case.queries, weights, case.keys.centroids, case.values)
    merged = merge_centroids(*arguments, scale=SCALE, backend=backend)
    assert torch.equal(merged[:, ::2], out[:, ::2]) and merged.isfinite().all()
    assert (merged[:, 1] - out[:, 1]).abs().amax() > 0.1
    lse[1, 0, 5] = torch.nan
    assert merge_centroids(*arguments, scale=SCALE, backend=backend)[1, 0, 5].isnan().all()


def test_an_error_that_vanishes_is_nought() -> None:
    case = make_case()
    places = take_rows(case.keys.centroids, case.keys.labels)
    same = replace(case, k=places, v=take_rows(case.values, case.keys.labels))
    for backend in BACKENDS:
        assert same.log_error(backend).max() < math.log(1e-9)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    case, before = make_case(), torch.get_num_threads()
    first = case.log_error("cpu"), case.merged("cpu"), pooled(case.v, case.keys.offsets, case.keys.order)
    try:
        for threads in (1, 2, 3, 5) * 10:
            torch.set_num_threads(threads)
            again = case.log_error("cpu"), case.merged("cpu"), pooled(case.v, case.keys.offsets, case.keys.order)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


def test_opcheck() -> None:
    if reason := _extension.load():
        pytest.skip(reason)
    case, ops = make_case(16), torch.ops.sparse_kernels
    centroids, values = case.keys.centroids, case.values
    keys = (case.keys.order, case.keys.offsets, centroids, values)
    torch.library.opcheck(
        ops.centroid_log_error_cpu.default, (case.queries.centroids, case.k, case.v, *keys, SCALE, "")
    )
    queries = (case.queries.order, case.queries.offsets, case.weights(), centroids, values)
    torch.library.opcheck(ops.merge_centroids_cpu.default, (case.q, *case.out(), *queries, SCALE, ""))
    torch.library.opcheck(ops.pooled_cpu.default, (case.v, case.keys.offsets, case.keys.order, ""))


def test_buffers_of_the_reference_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    whole = case.log_error("reference"), case.merged("reference")
    monkeypatch.setattr(reference, "ELEMENTS", 1)
    assert torch.allclose(case.log_error("reference"), whole[0], atol=1e-4)
    assert torch.allclose(case.merged("reference"), whole[1], atol=1e-5)


def test_take_rows_equals_indexing() -> None:
    x, index = torch.randn(2, 3, 5, 4).transpose(0, 1), torch.randint(0, 5, (3, 2, 7), dtype=torch.int32)
    taken = take_rows(x, index)
    assert all(torch.equal(taken[b, h], x[b, h, index[b, h].long()]) for b in range(3) for h in range(2))


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_refused() -> None:
    case = make_case()
    error = (case.queries.centroids, case.k, case.v, case.keys, case.values)
    with pytest.raises(
        ValueError,
        match="v must be a floating-point tensor of shape .2, 3, 211, 40., got",
    ):
        centroid_log_error(error[0], case.k, case.v[:, :, 1:], *error[3:], scale=SCALE)
    with pytest.raises(ValueError, match="queries must be"):
        centroid_log_error(error[0][:, 1:], *error[1:], scale=SCALE)
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'int8'"):
        centroid_log_error(*error, scale=SCALE, precision="int8")
    with pytest.raises(ValueError, match="keys must be the clusters of"):
        centroid_log_error(error[0], case.k[:, :, 1:], case.v[:, :, 1:], *error[3:], scale=SCALE)
    merge = (case.q, *case.out(), case.queries, case.weights(), case.keys.centroids, case.values)
    with pytest.raises(ValueError, match="weights must be a floating-point tensor of shape"):
        merge_centroids(*merge[:4], merge[4][:, :, 1:], *merge[5:], scale=SCALE)
    with pytest.raises(ValueError, match="share one of float32"):
        merge_centroids(merge[0], merge[1].half(), *merge[2:], scale=SCALE)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        merge_centroids(*merge, scale=SCALE, backend="gpu")


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_would_be_read_outside_is_refused(backend: str) -> None:
    case, big = make_case(), 2**31 - 1
    few, keys = case.values[:, :, :3], case.keys
    for message, arguments in (
        ("values must be a floating-point tensor of shape .2, 3, 37, 40.", (keys, few)),
        ("values must be a floating-point tensor", (keys, case.values.int())),
        ("keys must be Clusters, which kmeans returns, got NoneType", (None, case.values)),
        ("keys.offsets must rise from 0", (replace(keys, offsets=keys.offsets + big // 2), case.values)),
        ("keys.order must hold every row", (replace(keys, order=keys.order + 1), case.values)),
        ("keys.labels and keys.sizes must be those", (replace(keys, labels=keys.labels + 30), case.values)),
        ("keys.labels and keys.sizes must be those", (replace(keys, sizes=keys.sizes + 1), case.values)),
    ):
        with pytest.raises(ValueError, match=message):
            centroid_log_error(case.queries.centroids, case.k, case.v, *arguments, scale=SCALE, backend=backend)
    merge, options = (case.q, *case.out()), {"scale": SCALE, "backend": backend}
    with pytest.raises(ValueError, match="values must be a floating-point tensor of shape .2, 3, 37, 40."):
        merge_centroids(*merge, case.queries, case.weights(), keys.centroids, few, **options)
    with pytest.raises(ValueError, match="centroids must be a floating-point tensor of shape"):
        merge_centroids(*merge, case.queries, case.weights(), keys.centroids.int(), case.values, **options)
    with pytest.raises(ValueError, match="queries.order must hold every row"):
        moved = replace(case.queries, order=case.queries.order - 1)
        merge_centroids(*merge, moved, case.weights(), keys.centroids, case.values, **options)


@pytest.mark.usefixtures("unchecked_shapes")
def test_clusters_that_do_not_fit_together_are_refused() -> None:
    keys = make_case().keys
    for field, value, message in (
        ("labels", keys.labels.long(), "labels must be torch.int32 with 3 dimensions, got torch.int64"),
        ("centroids", keys.centroids.half(), "centroids must be torch.float32 with 4 dimensions, got torch.float16"),
        ("offsets", keys.offsets[..., 1:], "offsets must be .2, 3, 38., as labels and centroids are, got .2, 3, 37."),
        ("order", None, "order must be torch.int64 with 3 dimensions, got NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(keys, **{field: value})


def test_labels_of_other_clusters_than_the_order_are_refused() -> None:
    k = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    keys = kmeans(k, k[:, :, :4].clone(), iterations=2)
    labels = keys.labels.clone()
    labels[0, 1, 7] = (labels[0, 1, 7] + 1) % 4
    values = torch.zeros_like(keys.centroids)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="keys.order must bring the labels of each cluster together"):
            centroid_log_error(k[:, :, :3], k, k, replace(keys, labels=labels), values, scale=0.2, backend=backend)

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from sparse_kernels import Clusters, _extension, kmeans
from sparse_kernels.kmeans import cpu
from tests.sparse_kernels.processors import available

INSTRUCTIONS = ["portable", "avx2", "avx512"]
NARROW = ["avx512_bf16", "amx", "amx_emulated"]
EVERY_BACKEND = ["reference", "cpu"]


def make_rows(
    seed: int, batch: int = 2, heads: int = 3, rows: int = 203, clusters: int = 19, head_dim: int = 24
) -> tuple[Tensor, Tensor]:
    """Return rows around a few centres, and random ones of them to start from."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, heads, 8, head_dim, generator=generator) * 2
    nearest = torch.randint(8, (batch, heads, rows, 1), generator=generator).expand(-1, -1, -1, head_dim)
    x = centres.gather(2, nearest) + torch.randn(batch, heads, rows, head_dim, generator=generator)
    return x, x[:, :, torch.randperm(rows, generator=generator)[:clusters]]


def distances(x: Tensor, centroids: Tensor) -> Tensor:
    return (x.double()[..., None, :] - centroids.double()[..., None, :, :]).square().sum(-1)


def lloyd(x: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return labels and centroids in float64, by the full distance matrix."""
    centroids = centroids.double()
    labels = distances(x, centroids).argmin(-1)
    for iteration in range(iterations):
        labels = distances(x, centroids).argmin(-1) if iteration else labels
        chosen = torch.nn.functional.one_hot(labels, centroids.shape[2]).double()
        sizes = chosen.sum(2)[..., None]
        centroids = torch.where(sizes > 0, chosen.mT @ x.double() / sizes.clamp(min=1), centroids)
    return labels, centroids


def assert_consistent(clusters: Clusters) -> None:
    """Sizes, order and offsets are those of the labels."""
    labels = clusters.labels.long()
    count = clusters.sizes.shape[2]
    assert torch.equal(clusters.order, labels.argsort(dim=-1, stable=True))
    assert torch.equal(clusters.sizes.long(), torch.nn.functional.one_hot(labels, count).sum(2))
    assert (clusters.offsets[..., 0] == 0).all() and torch.equal(clusters.offsets.diff(), clusters.sizes)
    kinds = [field.dtype for field in (clusters.labels, clusters.sizes, clusters.order, clusters.offsets)]
    assert kinds == [torch.int32, torch.int32, torch.int64, torch.int32]
    assert clusters.centroids.dtype == torch.float32


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_equals_lloyd_in_float64(backend: str, dtype: torch.dtype, iterations: int) -> None:
    x, start = (tensor.to(dtype) for tensor in make_rows(0))
    labels, centroids = lloyd(x, start, iterations)
    clusters = kmeans(x, start, iterations=iterations, tolerance=0.0, backend=backend)
    assert torch.equal(clusters.labels.long(), labels)
    assert (clusters.centroids - centroids).abs().max() < 2e-6
    assert_consistent(clusters)


def forced(x: Tensor, start: Tensor, iterations: int, instructions: str) -> Clusters:
    with available(instructions):
        return cpu.forward(x, start, iterations, 0.0, instructions=instructions)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(
    ("rows", "clusters", "head_dim"), [(1, 1, 1), (48, 16, 8), (49, 17, 3), (300, 33, 80), (95, 70, 128)]
)
def test_every_instruction_set_and_odd_size(instructions: str, rows: int, clusters: int, head_dim: int) -> None:
    x, start = make_rows(rows, 1, 2, rows, min(rows, clusters), head_dim)
    labels, centroids = lloyd(x, start, 2)
    ours = forced(x, start, 2, instructions)
    assert torch.equal(ours.labels.long(), labels)
    assert (ours.centroids - centroids).abs().max() < 2e-6
    assert_consistent(ours)


@pytest.mark.parametrize("instructions", NARROW)
@pytest.mark.parametrize(("rows", "clusters", "head_dim"), [(48, 16, 8), (49, 17, 3), (300, 33, 80), (1000, 70, 64)])
def test_bfloat16_products_find_the_nearest_of_rounded_centroids(
    instructions: str, rows: int, clusters: int, head_dim: int
) -> None:
    x, start = make_rows(rows, 1, 2, rows, clusters, head_dim)
    x = x.bfloat16()
    ours = forced(x, start, 1, instructions)
    assert_consistent(ours)
    to_rounded = distances(x, start.bfloat16())
    excess = to_rounded.gather(-1, ours.labels.long()[..., None])[..., 0] - to_rounded.amin(-1)
    assert excess.max() < 1e-4 * to_rounded.amin(-1).max()
    chosen = torch.nn.functional.one_hot(ours.labels.long(), clusters).double()
    means = chosen.mT @ x.double() / chosen.sum(2)[..., None].clamp(min=1)
    assert ((ours.centroids - means).abs() * (ours.sizes > 0)[..., None]).max() < 2e-6
    # Rounding costs nothing that counts, and of equal centroids the first wins.
    twice = forced(x, start.repeat(1, 1, 2, 1), 0, instructions)
    assert torch.equal(twice.labels, forced(x, start, 0, instructions).labels)
    exact, rough = kmeans(x, start, iterations=20, tolerance=0.0), forced(x, start, 20, instructions)
    inertia = [distances(x, c.centroids).amin(-1).sum() for c in (exact, rough)]
    assert inertia[1] < 1.02 * inertia[0]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_more_clusters_than_rows_and_empty_ones_keep_their_centroid(backend: str) -> None:
    x, _ = make_rows(1, 1, 1, 7)
    start = torch.cat([x, x + 100], 2)
    clusters = kmeans(x, start, iterations=5, backend=backend)
    assert clusters.labels.flatten().tolist() == list(range(7))
    assert clusters.sizes.flatten().tolist() == [1] * 7 + [0] * 7
    assert torch.equal(clusters.centroids, start)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize(("rows", "clusters"), [(2, 33), (16, 16), (40, 60)])
def test_rows_far_from_the_origin_are_told_apart_when_centred(rows: int, clusters: int, backend: str) -> None:
    """Of two rows a rounding apart either may win a centroid, which Lloyd's iterations then never undo."""
    generator = torch.Generator().manual_seed(rows)
    x = 300 + 0.1 * torch.randn(1, 40, rows, 24, generator=generator)
    start = torch.cat([x, x[:, :, :1].expand(-1, -1, clusters - rows, -1)], 2)
    far = kmeans(x, start, iterations=0, backend=backend)
    squared = distances(x, start)
    excess = squared.gather(-1, far.labels.long()[..., None])[..., 0] - squared.amin(-1)
    assert excess.max() < 1e-6 * x.square().sum(-1).max()
    assert excess.max() > 0 or backend == "reference"  # which rounds distances alone, and here may be spared
    centre = x.mean(2, keepdim=True)
    near = kmeans(x - centre, start - centre, iterations=5, backend=backend)
    assert torch.equal(near.labels, torch.arange(rows, dtype=torch.int32).expand_as(near.labels))
    assert distances(x - centre, near.centroids).amin(-1).max() == 0


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_of_equal_centroids_the_first_wins(backend: str) -> None:
    x, start = make_rows(2, 1, 1, 100, 5)
    clusters = kmeans(x, start.repeat(1, 1, 9, 1), iterations=0, backend=backend)
    assert torch.equal(clusters.labels, kmeans(x, start, iterations=0, backend=backend).labels)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_each_head_stops_by_itself(backend: str) -> None:
    x, start = make_rows(3, 1, 2, 400, 6)
    start = torch.cat([kmeans(x, start, iterations=99, tolerance=0.0).centroids[:, :1], start[:, 1:]], 1)
    together = kmeans(x, start, iterations=30, tolerance=0.05, backend=backend)
    for head in range(2):
        alone = kmeans(x[:, [head]], start[:, [head]], iterations=30, tolerance=0.05, backend=backend)
        assert torch.equal(together.labels[:, [head]], alone.labels)
        assert torch.equal(together.centroids[:, [head]], alone.centroids)
    # A settled start survives one update; a loose tolerance stops after the first.
    assert torch.allclose(together.centroids[:, 0], start[:, 0], atol=1e-6)
    first = kmeans(x, start, iterations=30, tolerance=1e9, backend=backend)
    assert torch.equal(first.centroids, kmeans(x, start, iterations=1, tolerance=0.0, backend=backend).centroids)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, start = make_rows(4, rows=1000, clusters=50)
    expected = kmeans(x, start, iterations=5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5) * 50:
            torch.set_num_threads(threads)
            ours = kmeans(x, start, iterations=5)
            assert torch.equal(ours.centroids, expected.centroids) and torch.equal(ours.order, expected.order)
    finally:
        torch.set_num_threads(before)


def test_strided_rows_and_nan() -> None:
    x, start = make_rows(5)
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    expected = kmeans(x, start, iterations=3)
    assert torch.equal(kmeans(transposed, start, iterations=3).labels, expected.labels)
    assert torch.equal(kmeans(x.mT.contiguous().mT, start, iterations=3).labels, expected.labels)
    x[0, 0, 7] = torch.nan
    clusters = kmeans(x, start, iterations=3)
    assert ((clusters.labels >= 0) & (clusters.labels < 19)).all()
    assert torch.equal(clusters.labels[0, 1], expected.labels[0, 1])


def test_inertia_falls() -> None:
    x, start = make_rows(6)
    inertia = [
        distances(x, kmeans(x, start, iterations=i, tolerance=0.0).centroids).amin(-1).sum().item() for i in range(6)
    ]
    assert inertia == sorted(inertia, reverse=True) and inertia[-1] < 0.9 * inertia[0]


def test_clusters_of_the_same_numbers_are_equal() -> None:
    clusters = kmeans(*make_rows(9, 1, 2, 30, 4, 8), iterations=2)
    again = copy.deepcopy(clusters)
    assert again == clusters and hash(again) == hash(clusters) and clusters != "clusters"
    assert dataclasses.replace(clusters, centroids=-clusters.centroids) != clusters
    on_meta = Clusters(*(field.to("meta") for field in vars(clusters).values()))
    assert on_meta != clusters and on_meta == on_meta


def test_opcheck() -> None:
    if _extension.load() is not None:
        pytest.skip("no C++ kernel")
    x, start = make_rows(7, 1, 2, 20, 4, 8)
    torch.library.opcheck(torch.ops.sparse_kernels.kmeans_cpu.default, (x, start, 2, 0.0, ""))


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named() -> None:
    x, start = make_rows(8)
    for arguments, options, message in (
        ((x[0], start), {}, "x must be a tensor .b h rows d. and not empty"),
        ((x, start[:, :, :0]), {}, "centroids must be a tensor .b h rows d. and not empty"),
        ((x, start[:, :1]), {}, "agree on batch, heads and head_dim"),
        ((x, start[..., :8]), {}, "agree on batch, heads and head_dim"),
        ((x.double(), start), {}, "x must be one of float32, bfloat16, float16, got torch.float64"),
        ((x, start.to("meta")), {}, "centroids is on meta, x on cpu"),
        ((x, start), {"iterations": -1}, "iterations must be 0 or more and below 2.31, got -1"),
        ((x, start), {"tolerance": -1.0}, "tolerance must be 0 or more"),
        ((x, start), {"precision": "int8"}, "precision must be float32 or bfloat16, got 'int8'"),
        ((x, start), {"backend": "tpu"}, "unknown backend 'tpu'; accepted: cpu, triton, reference"),
        ((x.to("meta"), start.to("meta")), {"backend": "cpu"}, "backend cpu cannot run this call: x is on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            kmeans(*arguments, **({"iterations": 1} | options))

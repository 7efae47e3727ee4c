"""SVG2: clusters, selection, density budget, warm start, text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import accel
from accel.attention.call import Geometry, LayerMemory
from accel.attention.execute import execute
from accel.attention.masks.cluster_pairs import centroid_logits, centroid_mass, select_clusters
from accel.attention.orders import clusters as clusters_module
from accel.attention.orders.clusters import Clustering, WarmCentroids, first_centroids
from accel.attention.plan import Dense, Plan, Sparse
from accel.methods.registry import by_name
from accel.methods.svg2 import SVG2
from sparse_kernels import BlockMap, block_sparse_attention, kmeans, rank_entries
from sparse_kernels.centroids.reference import take_rows
from tests.accel.calls import as_call, dense, rows_around
from tests.accel.calls import row as row_of
from tests.accel.cluster_calls import (
    COUNTS,
    GEOMETRIES,
    brute_mass,
    brute_top_p,
    clustered_call,
    clusters_of,
    token_mask,
)
from tests.accel.wan_models import STEPS, generate, pipeline

PUBLISHED = dict(first_iterations=50, iterations=2)
SMALL: dict[str, Any] = dict(dense_steps=0.0, query_clusters=COUNTS[0], key_clusters=COUNTS[1], **PUBLISHED)


def sparse(plan: Plan) -> Sparse:
    assert isinstance(plan, Sparse)
    return plan


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize(("top_p", "least_share"), [(0.6, 0.0), (0.3, 0.25), (0.9, 0.1)])
def test_plan_equals_the_published_rule(geometry: Geometry, top_p: float, least_share: float) -> None:
    call = clustered_call(geometry=geometry)
    queries, keys = clusters_of(call)
    kept = brute_top_p(brute_mass(call, queries, keys), top_p, int(least_share * COUNTS[1]))
    assert kept.any(-1).all() and not kept.all()
    plan = sparse(SVG2(top_p=top_p, least_share=least_share, **SMALL).plan(call, LayerMemory()))
    mask = token_mask(call, queries, keys, kept)
    assert plan.density == pytest.approx(mask.double().mean().item(), abs=1e-9)
    assert (execute(call, plan)[0] - dense(call, mask)).abs().max() < 1e-5


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
def test_orders_hold_every_token_once_and_text_last(geometry: Geometry) -> None:
    call = clustered_call(geometry=geometry)
    for axis, x in zip(clusters_of(call), (call.q, call.k), strict=True):
        assert torch.equal(axis.order.sort(-1).values, torch.arange(geometry.tokens).expand_as(axis.order))
        assert axis.order.dtype == torch.int64 and axis.offsets.dtype == torch.int32
        video = geometry.video
        text = [token for token in range(geometry.tokens) if not video.start <= token < video.stop]
        assert axis.order[1, 2, geometry.video_tokens :].tolist() == text
        # The first block holds the tokens of the first cluster.
        rows = axis.order[1, 2, : axis.offsets[1, 2, 1]] - video.start
        assert torch.equal(rows, (axis.clusters.labels[1, 2] == 0).nonzero().flatten())
        assert axis.clusters.labels.shape == x[:, :, video].shape[:3]


@pytest.mark.parametrize("position", ["first", "last"])
def test_text_is_always_kept(position: str) -> None:
    geometry = GEOMETRIES[1 if position == "first" else 2]
    call = clustered_call(geometry=geometry)
    plan = sparse(SVG2(top_p=0.01, least_share=0.0, **SMALL).plan(call, LayerMemory()))
    mask = plan.block_map.to_dense()
    filled = plan.block_map.kv_offsets.diff() > 0
    assert mask[..., -1].all() and torch.equal(mask[..., -1, :], filled) and not mask.all()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize("options", [dict(density=1.0), dict(top_p=1.0)])
def test_full_density_is_dense_attention(geometry: Geometry, options: dict[str, float]) -> None:
    call = clustered_call(geometry=geometry)
    plan = sparse(SVG2(**options, **SMALL).plan(call, LayerMemory()))
    assert plan.density == 1.0
    assert (execute(call, plan)[0] - dense(call)).abs().max() < 1e-5


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize("density", [0.2, 0.3, 0.6])
def test_density_is_met(geometry: Geometry, density: float) -> None:
    plan = sparse(SVG2(density=density, **SMALL).plan(clustered_call(geometry=geometry), LayerMemory()))
    # Half a pair of clusters may stand over or be missing.
    assert plan.density == pytest.approx(density, abs=0.005)


def test_a_density_is_the_published_rule_at_one_top_p() -> None:
    call = clustered_call()
    queries, keys = clusters_of(call)
    mass = centroid_mass(centroid_logits(queries.clusters, keys.clusters, call.scale), keys.clusters.sizes)
    assert torch.allclose(mass.double(), brute_mass(call, queries, keys), atol=1e-6)
    options: dict[str, float] = dict(density=0.4, top_p=0.0, least_share=0.0)
    kept = select_clusters(rank_entries(mass), queries.clusters.sizes, keys.clusters.sizes, call.geometry, **options)
    for sample in range(2):
        exact = brute_mass(call, queries, keys)[sample]
        ranked, order = exact.sort(-1, descending=True)
        before = (ranked.cumsum(-1) - ranked)[kept[sample].gather(-1, order)]
        solved = before.max().item()
        assert 0.05 < solved < 0.95
        assert torch.equal(kept[sample], brute_top_p(exact, solved + 1e-6, 1))


def test_a_batch_equals_single_runs() -> None:
    call = clustered_call()
    both = execute(call, sparse(SVG2(density=0.3, **SMALL).plan(call, LayerMemory())))[0]
    for row in range(2):
        one = row_of(call, row)
        plan = sparse(SVG2(density=0.3, **SMALL).plan(one, LayerMemory()))
        assert (execute(one, plan)[0] - both[row : row + 1]).abs().max() < 1e-6


def test_memory_warm_starts_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[torch.Tensor, int]] = []

    def noted(x: torch.Tensor, centroids: torch.Tensor, *, iterations: int, precision: str) -> Any:
        calls.append((centroids, iterations))
        return kmeans(x, centroids, iterations=iterations, precision=precision)

    monkeypatch.setattr(clusters_module, "kmeans", noted)
    memory, method = LayerMemory(), SVG2(**SMALL)
    method.plan(clustered_call(0), memory)
    first = replace(memory.state.warm)
    assert memory.nbytes() == sum(COUNTS) * 2 * 3 * 16 * 4
    method.plan(clustered_call(1, seed=1), memory)
    assert [iterations for _, iterations in calls] == [50, 2, 50, 2, 2, 2]
    assert torch.equal(calls[4][0], first.queries) and torch.equal(calls[5][0], first.keys)
    assert not torch.equal(memory.state.warm.keys, first.keys)
    method.plan(clustered_call(2, batch=1), memory)  # centroids of another batch are of no use
    method.plan(clustered_call(0), LayerMemory())
    assert [iterations for _, iterations in calls[6:]] == [50, 2] * 4


@pytest.mark.parametrize("name", ["svg2", "svg-ear"])
def test_state_lives_for_one_branch_and_generation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    iterations: list[int] = []

    def noted(x: torch.Tensor, centroids: torch.Tensor, **options: int) -> Any:
        iterations.append(options["iterations"])
        return kmeans(x, centroids, **options)

    monkeypatch.setattr(clusters_module, "kmeans", noted)
    pipe = pipeline("wan-2.1")
    counts = dict(query_clusters=4, key_clusters=6, **PUBLISHED)
    with accel.enabled(pipe, name, density=0.5, dense_steps=0.2, **counts) as handle:
        first = generate(pipe)
        assert handle.memory_bytes() == 0
        # One dense step; then two axes, layers and branches start cold, on some tokens and twice on all.
        assert (iterations.count(50), iterations.count(2)) == (8, 8 * (STEPS - 1))
        generate(pipe, height=96)
        assert torch.equal(generate(pipe), first)
        assert handle.stats()[-1].density == pytest.approx(0.5, abs=0.08)
    assert (iterations.count(50), iterations.count(2)) == (24, 24 * (STEPS - 1))


def test_warm_up_is_dense_and_can_cluster() -> None:
    options = {**SMALL, "dense_steps": 0.2}
    memory = LayerMemory()
    assert isinstance(SVG2(**options).plan(clustered_call(1), memory), Dense) and memory.state is None
    clustering = SVG2(cluster_dense_steps=True, **options)
    assert isinstance(clustering.plan(clustered_call(1), memory), Dense) and memory.state.warm.keys is not None
    assert isinstance(clustering.plan(clustered_call(2), memory), Sparse)
    never_sparse = LayerMemory()
    assert isinstance(SVG2(cluster_dense_steps=True, dense_layers=1).plan(clustered_call(5), never_sparse), Dense)
    assert never_sparse.state is None


def test_counts_follow_the_tokens() -> None:
    call = clustered_call(geometry=Geometry(4, 16, 16), batch=1, heads=1)
    queries, keys = Clustering(None, None, 1, 1)(call, WarmCentroids())
    assert (queries.clusters.sizes.shape[-1], keys.clusters.sizes.shape[-1]) == (8, 16)
    tiny = clustered_call(geometry=Geometry(1, 2, 3), batch=1)
    queries, keys = Clustering(None, 100, 1, 1)(tiny, WarmCentroids())
    assert (queries.clusters.sizes.shape[-1], keys.clusters.sizes.shape[-1]) == (1, 6)


def test_first_iterations_on_some_tokens_find_clusters_as_tight() -> None:
    call = clustered_call(geometry=Geometry(8, 16, 16))

    def spread(first_share: float) -> float:
        queries, _ = Clustering(*COUNTS, 50, 2, first_share)(call, WarmCentroids())
        near = take_rows(queries.clusters.centroids, queries.clusters.labels)
        return float((call.q - near).square().sum())

    assert spread(0.25) < 1.03 * spread(1.0)
    _, keys = Clustering(*COUNTS, 0, 0, 0.001)(call, WarmCentroids())  # never fewer tokens than clusters
    assert keys.clusters.centroids.shape[2] == COUNTS[1]


def test_first_centroids_are_different_tokens() -> None:
    call = clustered_call()
    centroids = first_centroids(call.k, 300)
    assert centroids.unique(dim=2).shape[2] == 300
    assert torch.equal(first_centroids(call.k[1:], 300), centroids[1:])


def test_empty_clusters_make_empty_blocks() -> None:
    call = clustered_call()
    q, k = (x[:, :, :3].repeat(1, 1, 107, 1)[:, :, :320] for x in (call.q, call.k))
    few = as_call(q, k, call.v, call.geometry, call.progress)
    plan = sparse(SVG2(density=1.0, **SMALL).plan(few, LayerMemory()))
    sizes = plan.block_map.kv_offsets.diff()
    assert ((sizes > 0).sum(-1) == 3).all() and plan.density == 1.0
    assert plan.block_map.counts.max() == 3
    # Even if a map names them, empty blocks are passed over.
    every = torch.ones_like(plan.block_map.to_dense())
    everything = BlockMap.from_dense(every, plan.block_map.q_offsets, plan.block_map.kv_offsets)
    orders = dict(q_order=plan.q_order, kv_order=plan.kv_order)
    for block_map in (plan.block_map, everything):
        for backend in (None, "reference"):
            out = block_sparse_attention(q, k, call.v, block_map, backend=backend, **orders)
            assert (out - dense(few)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(density=0.0), "density must be above 0"),
        (dict(top_p=1.5), "top_p must lie between 0 and 1"),
        (dict(least_share=-0.1), "least_share must lie between 0 and 1"),
        (dict(iterations=-1), "iterations must be 0 or more"),
        (dict(key_clusters=0), "key_clusters must be 1 or more"),
        (dict(every=0), "every must be 1 or more"),
    ],
)
@pytest.mark.parametrize("name", ["svg2", "svg-ear"])
def test_unusable_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name(name, **options)

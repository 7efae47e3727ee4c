"""SVG-EAR: error of centroids, routing, compensation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.execute import execute
from accel.attention.masks import cluster_error
from accel.attention.masks.cluster_error import log_centroid_error
from accel.attention.masks.cluster_pairs import centroid_logits
from accel.attention.orders.clusters import ClusteredTokens
from accel.attention.plan import Dense, Plan, Sparse
from accel.methods.svg2 import SVG2
from accel.methods.svg_ear import SVGEAR
from sparse_kernels import pooled
from sparse_kernels.centroids.reference import take_rows
from tests.accel.calls import as_call, dense, rows_around
from tests.accel.cluster_calls import (
    COUNTS,
    GEOMETRIES,
    brute_mass,
    brute_top_p,
    clustered_call,
    clusters_of,
    token_mask,
)

SMALL: dict[str, Any] = dict(
    dense_steps=0.0, query_clusters=COUNTS[0], key_clusters=COUNTS[1], first_iterations=50, iterations=2
)


def sparse(plan: Plan) -> Sparse:
    assert isinstance(plan, Sparse)
    return plan


def mean_values(call: AttentionCall, keys: ClusteredTokens) -> Tensor:
    """Return each cluster's mean value in float64."""
    member = torch.nn.functional.one_hot(keys.clusters.labels.long(), COUNTS[1]).double()
    sums = member.transpose(-1, -2) @ call.v[:, :, call.geometry.video].double()
    return sums / keys.clusters.sizes.clamp(min=1)[..., None]


def brute_error(call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens) -> Tensor:
    """Return sum_t |e^(q k_t) v_t - e^(q k_c) v_c|^2 in float64, from its definition."""
    video = call.geometry.video
    q, k_c, v_c = queries.clusters.centroids.double(), keys.clusters.centroids.double(), mean_values(call, keys)
    k, v, labels = call.k[:, :, video].double(), call.v[:, :, video].double(), keys.clusters.labels.long()
    error = torch.zeros(*q.shape[:2], *COUNTS, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(size) for size in error.shape)).tolist():
        members = labels[b, h] == j
        exact = (k[b, h, members] @ q[b, h, i] * call.scale).exp()[:, None] * v[b, h, members]
        estimate = (k_c[b, h, j] @ q[b, h, i] * call.scale).exp() * v_c[b, h, j]
        error[b, h, i, j] = (exact - estimate).square().sum()
    return error


def brute_route(call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens, method: SVGEAR) -> Tensor:
    """Return the published routing: the heaviest clusters, then by error per area while the budget lasts."""
    mass, count = brute_mass(call, queries, keys), COUNTS[1]
    allowed = brute_top_p(mass, method.top_p, int(2 * method.least_share * count))
    error = brute_error(call, queries, keys)
    kept = torch.zeros_like(allowed)
    for b, h, i in torch.cartesian_prod(*(torch.arange(size) for size in mass.shape[:3])).tolist():
        n = keys.clusters.sizes[b, h].tolist()
        budget = sum(n[j] for j in range(count) if allowed[b, h, i, j])
        chosen = mass[b, h, i].argsort(descending=True)[: max(1, int(method.least_share * count))].tolist()
        spent = sum(n[j] for j in chosen)
        rows = int(queries.clusters.sizes[b, h, i])
        if rows == 0:
            continue
        scores = [
            math.log(error[b, h, i, j] + 1e-300) - method.area_exponent * math.log(rows * n[j]) if n[j] else -math.inf
            for j in range(count)
        ]
        for j in sorted(set(range(count)) - set(chosen), key=lambda j: -scores[j]):
            if spent < budget:
                chosen.append(j)
                spent += n[j]
        kept[b, h, i, chosen] = True
    return kept


def brute_compensated(call: AttentionCall, queries: ClusteredTokens, keys: ClusteredTokens, kept: Tensor) -> Tensor:
    """Return attention over kept tokens and, for each cluster left out, n copies of its centroid."""
    mask = token_mask(call, queries, keys, kept)
    left_out = torch.zeros(*mask.shape[:3], COUNTS[1], dtype=torch.bool)
    left_out[:, :, call.geometry.video] = take_rows((~kept).double(), queries.clusters.labels) > 0
    k = torch.cat([call.k.double(), keys.clusters.centroids.double()], 2)
    v = torch.cat([call.v.double(), mean_values(call, keys)], 2)
    weights = (call.q.double() @ k.transpose(-1, -2) * call.scale).exp()
    copies = (left_out * keys.clusters.sizes[:, :, None].double()).double()
    weights = weights * torch.cat([mask.double(), copies], -1)
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
def test_error_of_centroids_equals_its_definition(geometry: Geometry) -> None:
    call = clustered_call(geometry=geometry)
    queries, keys = clusters_of(call)
    video = geometry.video
    k, v = (x[:, :, video] for x in (call.k, call.v))
    values = pooled(v, keys.clusters.offsets, keys.clusters.order)
    assert torch.allclose(values.double(), mean_values(call, keys), atol=1e-6)
    arguments = (queries.clusters.centroids, k, v, keys.clusters, values, call.scale)
    error = log_centroid_error(*arguments, centroid_logits(queries.clusters, keys.clusters, call.scale))
    # A cluster whose keys are all at its centroid has no error at all, which has no logarithm.
    logits = queries.clusters.centroids.double() @ keys.clusters.centroids.double().transpose(-1, -2) * call.scale
    expected = (brute_error(call, queries, keys) + cluster_error.SMALLEST * (2 * logits).exp()).log()
    assert (error - expected).abs().max() < 1e-4


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize("options", [dict(top_p=0.5), dict(top_p=0.7, least_share=0.2, area_exponent=0.5)])
def test_plan_equals_the_published_rule(geometry: Geometry, options: dict[str, float]) -> None:
    call, method = clustered_call(geometry=geometry), SVGEAR(density=None, **options, **SMALL)
    queries, keys = clusters_of(call)
    kept = brute_route(call, queries, keys, method)
    plan = sparse(method.plan(call, LayerMemory()))
    mask = token_mask(call, queries, keys, kept)
    assert plan.density == pytest.approx(mask.double().mean().item(), abs=1e-9) and plan.density < 0.95
    out = execute(call, plan)[0]
    assert (out - brute_compensated(call, queries, keys, kept)).abs().max() < 1e-5
    assert (out - dense(call, mask)).abs().max() > 1e-2  # what the same map gives without compensation


def test_routing_differs_from_mass() -> None:
    call = clustered_call()
    by_error, by_mass = (
        sparse(method.plan(call, LayerMemory())).block_map.to_dense()
        for method in (SVGEAR(density=0.3, **SMALL), SVG2(density=0.3, **SMALL))
    )
    assert 0.02 < (by_error != by_mass).float().mean() < 0.5


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
def test_singleton_clusters_are_dense_attention(geometry: Geometry) -> None:
    call = clustered_call(geometry=geometry)
    options = {**SMALL, "key_clusters": geometry.video_tokens}
    plan = sparse(SVGEAR(density=0.2, **options).plan(call, LayerMemory()))
    assert plan.density < 0.25
    assert (execute(call, plan)[0] - dense(call)).abs().max() < 1e-5


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize("options", [dict(density=1.0), dict(top_p=1.0)])
def test_full_density_is_dense_attention(geometry: Geometry, options: dict[str, float]) -> None:
    call = clustered_call(geometry=geometry)
    plan = sparse(SVGEAR(**{"density": None, **options}, **SMALL).plan(call, LayerMemory()))
    assert plan.density == 1.0
    assert (execute(call, plan)[0] - dense(call)).abs().max() < 1e-5


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
@pytest.mark.parametrize("density", [0.25, 0.5])
def test_density_is_met_and_serves_better_than_mass_alone(geometry: Geometry, density: float) -> None:
    call = clustered_call(geometry=geometry)
    errors = []
    for method in (SVGEAR(density=density, **SMALL), SVG2(density=density, **SMALL)):
        plan = sparse(method.plan(call, LayerMemory()))
        # Each row of nine is rounded to whole clusters of some 23 of 320 keys.
        assert plan.density == pytest.approx(density, abs=0.02)
        errors.append((execute(call, plan)[0] - dense(call)).norm().item())
    assert errors[0] < 0.8 * errors[1]


def test_text_rows_are_exact_and_take_no_compensation() -> None:
    call = clustered_call(geometry=GEOMETRIES[1])
    out = execute(call, sparse(SVGEAR(density=0.2, **SMALL).plan(call, LayerMemory())))[0]
    assert (out[:, :, :13] - dense(call)[:, :, :13]).abs().max() < 1e-5


def test_compensation_survives_large_scores() -> None:
    call = clustered_call()
    call = as_call(call.q * 40, call.k * 4, call.v, call.geometry, call.progress)
    plan = sparse(SVGEAR(density=0.2, **SMALL).plan(call, LayerMemory()))
    assert plan.summaries is not None
    out = execute(call, plan)[0]
    assert out.isfinite().all() and out.abs().max() <= call.v.abs().max() + 1e-4


def test_a_batch_equals_single_runs() -> None:
    call = clustered_call()
    both = execute(call, sparse(SVGEAR(density=0.3, **SMALL).plan(call, LayerMemory())))[0]
    for row in range(2):
        q, k, v = (x[row : row + 1] for x in (call.q, call.k, call.v))
        one = as_call(q, k, v, call.geometry, call.progress)
        plan = sparse(SVGEAR(density=0.3, **SMALL).plan(one, LayerMemory()))
        assert (execute(one, plan)[0] - both[row : row + 1]).abs().max() < 1e-5


def test_half_precision_and_strided_inputs() -> None:
    call = clustered_call()
    q, k, v = (x.bfloat16().transpose(1, 2).contiguous().transpose(1, 2) for x in (call.q, call.k, call.v))
    half = as_call(q, k, v, call.geometry, call.progress)
    out = execute(half, sparse(SVGEAR(density=1.0, **SMALL).plan(half, LayerMemory())))[0]
    assert out.dtype == torch.bfloat16 and (out - dense(half)).abs().max() < 0.03
    out = execute(half, sparse(SVGEAR(density=0.4, **SMALL).plan(half, LayerMemory())))[0]
    assert (out - dense(half)).norm() < 0.5 * dense(half).norm()


def test_memory_and_warm_up() -> None:
    memory, method = LayerMemory(), SVGEAR(**{**SMALL, "dense_steps": 0.1, "cluster_dense_steps": True})
    assert isinstance(method.plan(clustered_call(0), memory), Dense)
    first = memory.state.warm.keys
    assert isinstance(method.plan(clustered_call(1), memory), Sparse)
    assert memory.state.warm.keys is not first and memory.nbytes() == sum(COUNTS) * 2 * 3 * 16 * 4


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=rows_around)
def test_a_plan_serves_several_steps_with_the_means_of_each(geometry: Geometry) -> None:
    method, memory = SVGEAR(density=0.3, every=2, **SMALL), LayerMemory()
    calls = [clustered_call(step, geometry, seed=seed) for step, seed in enumerate((0, 1, 1))]
    first, second, third = (sparse(method.plan(call, memory)) for call in calls)
    assert second.block_map is first.block_map and second.kv_order is first.kv_order
    assert third.block_map is not first.block_map
    assert first.summaries is not None and second.summaries is not None and first.kv_order is not None
    assert torch.equal(first.summaries.weights, second.summaries.weights)
    video = geometry.video_tokens
    assert (second.summaries.keys[:, :, : COUNTS[1]] - first.summaries.keys[:, :, : COUNTS[1]]).abs().max() > 0.1
    for means, rows in ((second.summaries.keys, calls[1].k), (second.summaries.values, calls[1].v)):
        ordered = rows.gather(2, first.kv_order[..., None].expand(-1, -1, -1, rows.shape[-1]))[:, :, :video].double()
        cluster = torch.bucketize(torch.arange(video), first.block_map.kv_offsets[0, 0][1:].contiguous(), right=True)
        expected = ordered[0, 0][cluster == 3].mean(0)
        assert (means[0, 0, 3] - expected).abs().max() < 1e-5
    alone = SVGEAR(density=0.3, **SMALL)
    assert execute(calls[1], second)[0].isfinite().all()
    assert torch.equal(execute(calls[0], first)[0], execute(calls[0], sparse(alone.plan(calls[0], LayerMemory())))[0])


def test_a_plan_of_another_batch_is_made_anew() -> None:
    method, memory = SVGEAR(density=0.3, every=5, **SMALL), LayerMemory()
    plans = [sparse(method.plan(clustered_call(batch=batch), memory)) for batch in (2, 1)]
    assert [plan.block_map.counts.shape[0] for plan in plans] == [2, 1]

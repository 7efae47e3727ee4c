"""Autocast around a call changes none of its bits: every function here chooses its own types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_kernels import (
    BlockMap,
    antidiagonal_scores,
    block_sparse_attention,
    fill_budget,
    kmeans,
    pooled,
    rank_entries,
)
from sparse_kernels._precision import without_autocast
from sparse_kernels.points import (
    ball_query,
    farthest_point_sampling,
    group,
    k_nearest_neighbors,
    three_nearest_interpolation,
)
from sparse_kernels.sparse_conv import KernelMap, sparse_conv, submanifold_map
from sparse_kernels.spike_conv import spike_conv
from tests.sparse_kernels.block_scores.test_block_scores import make_case as scored_case
from tests.sparse_kernels.cases import make_case
from tests.sparse_kernels.centroids.test_centroids import make_case as clustered_case
from tests.sparse_kernels.points.clouds import packed

Calls = dict[str, Callable[[], Any]]


def attention_calls(backend: str) -> Calls:
    """Return calls on blocks; large numbers, so that rounding shows."""
    case, scored, clustered = make_case(0), scored_case(0), clustered_case(spread=4)
    scored = replace(scored, q=4 * scored.q)
    rows = 4 * case.q, 4 * case.k, 4 * case.v, case.block_map
    options = {"q_order": case.q_order, "kv_order": case.kv_order, "return_lse": True, "backend": backend}
    offsets = case.block_map.q_offsets

    def rounded(precision: str) -> Callable[[], Any]:
        return lambda: block_sparse_attention(*rows, **options, precision=precision)

    return {
        "attention": lambda: block_sparse_attention(*rows, **options),
        # The C++ kernel has no fp8, and int8 not on every processor.
        **({precision: rounded(precision) for precision in ("int8", "fp8")} if backend == "reference" else {}),
        "mass": lambda: scored.run(backend),
        "antidiagonals": lambda: antidiagonal_scores(scored.q, scored.k, 16, 4, backend=backend),
        "means": lambda: pooled(rows[0], offsets),
        "means in torch": lambda: pooled(rows[0].double(), offsets),
        "k-means": lambda: vars(kmeans(rows[0], rows[0][:, :, :9].clone(), iterations=3, backend=backend)).values(),
        "errors of centroids": lambda: clustered.log_error(backend),
        "answers of centroids": lambda: clustered.merged(backend),
    }


def other_calls(backend: str) -> Calls:
    """Return calls on voxels, points and scores."""
    kernel_map, x, weight = convolution()
    spikes = (x > 0).float()
    scores, areas = 4 * torch.randn(3, 40), torch.randint(1, 9, (3, 40))
    points, offsets = 4 * torch.randn(40, 3), packed(torch.tensor([25, 15]))
    clouds = points, offsets, 4 * torch.randn(10, 3), packed(torch.tensor([6, 4]))
    features = 4 * torch.randn(40, 5)
    near = k_nearest_neighbors(*clouds, 4).index
    return {
        "convolution": lambda: sparse_conv(x, weight, kernel_map, backend=backend),
        "events": lambda: spike_conv(spikes, weight, kernel_map, backend=backend),
        "ranks": lambda: rank_entries(scores, backend=backend),
        "budget": lambda: fill_budget(scores, areas, 60, backend=backend),
        "samples": lambda: farthest_point_sampling(points, offsets, 7, backend=backend),
        "neighbours": lambda: k_nearest_neighbors(*clouds, 4, backend=backend),
        "ball": lambda: ball_query(*clouds, 3.0, 4, backend=backend),
        "groups": lambda: group(points, clouds[2], near, features),
        "interpolation": lambda: three_nearest_interpolation(features, *clouds, backend=backend),
    }


def convolution() -> tuple[KernelMap, Tensor, Tensor]:
    """Return a map, features and weights."""
    places = torch.nn.functional.pad(torch.randperm(40)[:30, None], (1, 0)).int()
    return submanifold_map(places, (40,), 3), 4 * torch.randn(30, 6), 4 * torch.randn(5, 3, 6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("draw", [attention_calls, other_calls])
def test_autocast_changes_no_bits(draw: Callable[[str], Calls], backend: str) -> None:
    for name, call in draw(backend).items():
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            found = call()
        pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
        assert all(torch.equal(*pair) for pair in pairs), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # on purpose, see flex.py
def test_autocast_changes_no_bits_of_flex() -> None:
    q, k, v = (4 * torch.randn(3, 1, 2, 128, 64)).unbind()
    block_map = BlockMap.uniform(torch.eye(2, dtype=torch.bool)[None, None], 64, 64, 128, 128)
    expected = block_sparse_attention(q, k, v, block_map, backend="flex")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_sparse_attention(q, k, v, block_map, backend="flex"), expected)


def test_products_beyond_float16_stay_finite() -> None:
    x = torch.full((1, 1, 64, 128), 30.0)
    block_map = BlockMap.uniform(torch.ones(1, 1, 1, 1, dtype=torch.bool), 64, 64, 64, 64)
    with torch.autocast("cpu", torch.float16):
        assert antidiagonal_scores(x, x, 64, 8).isfinite().all()
        assert block_sparse_attention(x.clone().requires_grad_(), x, x, block_map).isfinite().all()


def test_gradients_of_a_convolution_are_the_same_inside() -> None:
    kernel_map, *tensors = convolution()

    def gradients() -> tuple[Tensor, ...]:
        x, weight = (tensor.clone().requires_grad_() for tensor in tensors)
        return torch.autograd.grad(sparse_conv(x, weight, kernel_map, backend="reference").square().sum(), (x, weight))

    expected = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, gradients(), expected))


def test_gradients_of_attention_are_those_of_its_float32() -> None:
    case = make_case(1, q_length=20, kv_length=24)

    def attend(q: Tensor) -> Tensor:
        return block_sparse_attention(q, case.k, case.v, case.block_map).square().sum()

    leaves = [(4 * case.q).requires_grad_() for _ in range(2)]
    attend(leaves[0]).backward()
    with torch.autocast("cpu", torch.bfloat16):
        loss = attend(leaves[1])
    loss.backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_a_graph_is_whole_and_as_exact() -> None:
    def product(x: Tensor) -> Tensor:
        return x @ x.T

    exact, x = without_autocast(product), torch.randn(20, 30)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: exact(x), fullgraph=True, backend="eager")
    expected = product(x)
    assert torch.equal(compiled(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), expected) and product(x).dtype == torch.bfloat16


def test_devices_without_autocast_are_served() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert without_autocast(lambda x: x @ x)(torch.zeros(3, 3, device="meta")).dtype == torch.float32

"""Random calls of every public function of sparse_kernels, held against its reference.

A call is right or refused with one sentence, whatever it is given; on both backends the same.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_kernels import (
    BlockMap,
    Clusters,
    antidiagonal_scores,
    block_mass,
    block_sparse_attention,
    centroid_log_error,
    fill_budget,
    kmeans,
    merge_centroids,
    pooled,
    rank_entries,
)
from sparse_kernels.points import (
    ball_query,
    farthest_point_sampling,
    group,
    k_nearest_neighbors,
    three_nearest_interpolation,
)
from sparse_kernels.sparse_conv import KernelMap, sparse_conv, strided_map, submanifold_map, transposed_map
from sparse_kernels.spike_conv import spike_conv
from tests.sparse_kernels.cases import make_case
from tests.sparse_kernels.points import clouds
from tests.sparse_kernels.sparse_conv.scenes import draw_case

Arguments = dict[str, Any]
NUMBERS = (-(2**40), -1, 0, 1, 2, 7, 2**31, 2**40)
FIGURES = (float("nan"), float("inf"), -1e38, 1e26, 0.0, 1e-40)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64)
TAME = 1e3  # numbers up to here are computed alike by all backends, to rounding


def call_kernels(number: int) -> str:
    """Make the call of that number and return its function's name and what became of it; raises where it is wrong."""
    generator = random.Random(number)
    torch.manual_seed(number)
    function, draw = generator.choice(CALLS)
    arguments = draw(generator)
    for _ in range(generator.choice((0, 1, 1, 2))):
        try:
            _spoil(arguments, generator)
        except ValueError as error:  # a map or clusters that cannot even be made
            _check_sentence(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{function.__name__}: {_compare(function, arguments)}"


def _compare(function: Callable[..., Any], arguments: Arguments) -> str:
    if "backend" not in inspect.signature(function).parameters:
        refused, result = _outcome(function, arguments)
        assert refused or _is_whole(result, arguments)
        return refused or "done"
    refused, ours = _outcome(function, {**arguments, "backend": "cpu"})
    if refused.startswith("backend cpu cannot run this call"):
        return refused
    refused_too, theirs = _outcome(function, {**arguments, "backend": "reference"})
    assert bool(refused) == bool(refused_too), f"cpu: {refused or 'done'}; reference: {refused_too or 'done'}"
    if not refused:
        _check_near(function, ours, theirs, arguments)
    return refused or "done"


def _outcome(function: Callable[..., Any], arguments: Arguments) -> tuple[str, Any]:
    """Return why a call was refused, or an empty text and what it gave."""
    try:
        return "", function(**arguments)
    except ValueError as error:
        return _check_sentence(error), None


def _check_sentence(error: ValueError) -> str:
    text = str(error)
    assert text and "\n" not in text and "/csrc/" not in text, f"not one line for users: {text!r}"
    return text


def _check_near(function: Callable[..., Any], ours: Any, theirs: Any, arguments: Arguments) -> None:
    """Assert that two results are alike, and right up to rounding unless numbers are beyond all measure."""
    if isinstance(ours, Clusters):
        _check_clusters(ours, theirs, arguments)
        return
    for mine, other in zip(_tensors(ours), _tensors(theirs), strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype, f"{mine.shape} {other.shape}"
        if mine.is_meta or not _is_tame(arguments):
            continue
        single = {x.dtype for x in _floats(arguments)} <= {torch.float32, torch.float64}
        tolerance = 4e-2 if "precision" in arguments else 2e-4 if single else 1e-2
        mine, other = mine.double(), other.double()
        assert torch.equal(mine.isfinite(), other.isfinite()), "infinite or NaN in other places"
        if function is centroid_log_error:  # near its zeros a logarithm is all rounding
            mine, other = mine.clamp(min=-8).nan_to_num(), other.clamp(min=-8).nan_to_num()
        mine, other = mine.nan_to_num(), other.nan_to_num()
        error, size = (
            (mine - other).abs().amax() if mine.numel() else 0,
            max(1, other.abs().amax()) if other.numel() else 1,
        )
        assert error <= tolerance * size, f"off by {error} of {size}"


def _check_clusters(ours: Clusters, theirs: Clusters, arguments: Arguments) -> None:
    x, clusters = arguments["x"], arguments["centroids"].shape[2]
    if x.is_meta:
        return
    for one in (ours, theirs):
        assert one.labels.min() >= 0 and one.labels.max() < clusters
        assert torch.equal(one.offsets.diff(), one.sizes) and int(one.sizes.sum()) == one.labels.numel()
        assert torch.equal(one.order.sort().values, torch.arange(x.shape[2]).expand(one.order.shape))
        ordered = one.labels.gather(-1, one.order)
        assert (ordered.diff() >= 0).all()
    if _is_tame(arguments):
        far = [_spread(x, one) for one in (ours, theirs)]
        assert abs(far[0] - far[1]) <= 0.05 * max(far) + 1e-3 * x.double().square().sum(), f"spread {far}"


def _spread(x: Tensor, clusters: Clusters) -> float:
    index = clusters.labels.long()[..., None].expand(*x.shape)
    return float((x.double() - clusters.centroids.double().gather(2, index)).square().sum())


def _is_whole(result: Any, arguments: Arguments) -> bool:
    """Return whether nothing of it is unwritten memory, which is full of NaN here."""
    return not _is_tame(arguments) or not any(x.isnan().any() for x in _tensors(result) if not x.is_meta)


def _is_tame(arguments: Arguments) -> bool:
    numbers = [x.double().abs().amax() for x in _floats(arguments) if x.numel() and not x.is_meta]
    scale = arguments.get("scale") or 1.0
    return all(number <= TAME for number in (*numbers, abs(scale) * TAME)) and abs(scale) * max([*numbers, 0]) <= 40


def _floats(value: Any) -> list[Tensor]:
    return [x for x in _tensors(value) if x.is_floating_point()]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _spoil(arguments: Arguments, generator: random.Random) -> None:
    """Put something else in the place of one argument, or of one field of it; words and switches stay."""
    name = generator.choice([name for name, value in arguments.items() if not isinstance(value, (str, bool))])
    value = arguments[name]
    if isinstance(value, (BlockMap, Clusters, KernelMap)) and generator.random() < 0.9:
        fields = [field.name for field in dataclasses.fields(value) if isinstance(getattr(value, field.name), Tensor)]
        field = generator.choice(fields)
        arguments[name] = dataclasses.replace(value, **{field: _spoilt(getattr(value, field), generator)})
    elif name == "scale":
        arguments[name] = generator.choice(FIGURES)
    else:
        arguments[name] = _spoilt(value, generator)


def _spoilt(value: Any, generator: random.Random) -> Any:
    if isinstance(value, tuple):
        return (*value[1:], generator.choice(NUMBERS))
    if isinstance(value, int) and not isinstance(value, bool):
        return generator.choice(NUMBERS)
    if isinstance(value, float):
        return generator.choice(FIGURES)
    if not isinstance(value, Tensor):
        return generator.choice((value, torch.zeros(2, 3), torch.zeros(1, 1, 4, dtype=torch.int64)))
    return generator.choice((_reshaped, _retyped, _filled, _moved))(value, generator)


def _reshaped(x: Tensor, generator: random.Random) -> Tensor:
    axis = generator.randrange(max(x.ndim, 1))
    ways: list[Callable[[], Tensor]] = [
        lambda: x[None],
        lambda: x[0] if x.ndim and len(x) else x,
        lambda: x.narrow(axis, 0, 0) if x.ndim else x,
        lambda: x.narrow(axis, 0, max(x.shape[axis] - 1, 0)) if x.ndim else x,
        lambda: torch.cat([x, x], axis) if x.ndim else x,
        lambda: x.transpose(axis, -1) if x.ndim else x,
        lambda: x.flip(axis) if x.ndim else x,
        lambda: x.repeat_interleave(2, axis).narrow(axis, 0, x.shape[axis]) if x.ndim else x,
        lambda: x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape) if x.ndim and x.shape[axis] else x,
        lambda: torch.stack([x, x], -1)[..., 0],
    ]
    return generator.choice(ways)()


def _retyped(x: Tensor, generator: random.Random) -> Any:
    return generator.choice((*(x.to(dtype) for dtype in DTYPES), None, [1, 2]))


def _filled(x: Tensor, generator: random.Random) -> Tensor:
    """Put numbers that do not belong there into one place, or into all."""
    if not x.numel() or x.is_meta or x.dtype == torch.bool:
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    wide = 2**63 - 1 if x.dtype == torch.int64 else 2**31 - 1
    figure = generator.choice(FIGURES) if x.is_floating_point() else generator.choice((-wide, -1, 0, 1, 3, 100, wide))
    place = generator.randrange(x.numel())
    x.view(-1)[place if generator.random() < 0.7 else slice(None)] = figure if x.is_floating_point() else int(figure)
    return x


def _moved(x: Tensor, generator: random.Random) -> Tensor:
    return generator.choice((x.to("meta"), x.clone().requires_grad_(x.is_floating_point())))


def _attention(generator: random.Random) -> Arguments:
    case = make_case(
        generator.randrange(2**30),
        batch=generator.randint(1, 2),
        q_length=generator.randint(1, 70),
        kv_length=generator.randint(1, 70),
        head_dim=generator.choice((1, 16, 33, 64)),
        dtype=generator.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
        orders=generator.random() < 0.5,
    )
    return vars(case) | {"scale": generator.choice((None, 0.1)), "return_lse": True}


def _rounded_attention(generator: random.Random) -> Arguments:
    return _attention(generator) | {"precision": generator.choice(("int8", "fp8", "int4"))}


def _block_mass(generator: random.Random) -> Arguments:
    case = _attention(generator)
    q, block_map = case["q"], case["block_map"]
    lse = 4 + torch.randn(q.shape[:3])
    kept = {name: case[name] for name in ("q", "k", "q_order", "kv_order", "scale")}
    return kept | {"lse": lse, "q_offsets": block_map.q_offsets, "kv_offsets": block_map.kv_offsets}


def _antidiagonals(generator: random.Random) -> Arguments:
    case, stride = _attention(generator), generator.choice((1, 2, 4, 8))
    block = stride * generator.randint(1, 4)
    return {"q": case["q"], "k": case["k"], "block": block, "stride": stride, "scale": case["scale"], "causal": False}


def _pooled(generator: random.Random) -> Arguments:
    case = _attention(generator)
    return {"x": case["q"], "offsets": case["block_map"].q_offsets, "order": case["q_order"]}


def _kmeans(generator: random.Random) -> Arguments:
    x = _attention(generator)["q"]
    centroids = torch.randn(*x.shape[:2], generator.randint(1, 9), x.shape[3])
    return {"x": x, "centroids": centroids, "iterations": generator.randint(0, 3), "tolerance": 1e-4}


def _clustered(generator: random.Random, x: Tensor) -> Clusters:
    return kmeans(x, x[:, :, : generator.randint(1, 7)].float(), iterations=1)


def _centroid_error(generator: random.Random) -> Arguments:
    q = _attention(generator)["q"]
    k, v = torch.randn_like(q), torch.randn_like(q)
    keys = _clustered(generator, k)
    values = torch.randn(keys.centroids.shape)
    return {"queries": q[:, :, :5].float(), "k": k, "v": v, "keys": keys, "values": values, "scale": 0.2}


def _merge(generator: random.Random) -> Arguments:
    q = _attention(generator)["q"]
    queries, shape = _clustered(generator, q), (*q.shape[:2], generator.randint(1, 6), q.shape[3])
    weights = torch.randn(*queries.sizes.shape, shape[2])
    return {
        "q": q, "out": torch.randn_like(q), "lse": torch.randn(q.shape[:3]), "queries": queries, "weights": weights,
        "centroids": torch.randn(shape), "values": torch.randn(shape), "scale": 0.2,
    }  # fmt: skip


def _entries(generator: random.Random) -> Arguments:
    shape = [generator.randint(1, 3) for _ in range(generator.randint(0, 2))]
    scores = torch.randn(*shape, generator.choice((1, 2, 7, 64, 300)))
    return {"scores": (4 * scores).round() if generator.random() < 0.5 else scores}  # with ties


def _budget(generator: random.Random) -> Arguments:
    scores = _entries(generator)["scores"]
    areas = torch.randint(0, 20, scores.shape[-1:] if generator.random() < 0.5 else scores.shape, dtype=torch.int32)
    budget: Any = generator.randint(0, 400)
    if generator.random() < 0.5:
        budget = torch.randint(0, 400, (*scores.shape[:-1], 1))
    return {"scores": scores, "areas": areas, "budget": budget, "crossing": generator.random() < 0.5}


def _convolution(generator: random.Random) -> Arguments:
    case = draw_case(generator.randrange(2**30))
    dtype = generator.choice((torch.float32, torch.bfloat16, torch.float16))
    x, weight = case.features.to(dtype), case.weight.to(dtype)
    return {"features": x, "weight": weight, "kernel_map": case.map(), "bias": torch.zeros(len(weight), dtype=dtype)}


def _spikes(generator: random.Random) -> Arguments:
    case = _convolution(generator)
    features = case.pop("features")
    fired = torch.rand(generator.randint(1, 3), *features.shape) < generator.random()
    return case | {"spikes": fired.to(features.dtype) if generator.random() < 0.7 else fired[0]}


def _clouds(generator: random.Random) -> Arguments:
    # Distances are compared bit for bit elsewhere; where squares lose bits or overflow, a sum of them is not.
    drawn = clouds.draw(6 * generator.randrange(2**20) + generator.randrange(4), largest=60)
    return vars(drawn).copy()


def _neighbors(generator: random.Random) -> Arguments:
    return _clouds(generator) | {"k": generator.choice((1, 3, 20))}


def _ball(generator: random.Random) -> Arguments:
    return _neighbors(generator) | {"radius": generator.choice((0.3, 2.0))}


def _sampling(generator: random.Random) -> Arguments:
    drawn = _clouds(generator)
    return {"points": drawn["points"], "offsets": drawn["offsets"], "count": generator.choice((1, 5, 40))}


def _groups(generator: random.Random) -> Arguments:
    drawn = _clouds(generator)
    points, centers = drawn["points"], drawn["queries"]
    index = torch.randint(-1, max(len(points), 1), (len(centers), 4)).clamp(max=len(points) - 1)
    return {"points": points, "centers": centers, "index": index, "features": torch.randn(len(points), 3)}


def _interpolation(generator: random.Random) -> Arguments:
    drawn = _clouds(generator)
    return drawn | {"features": torch.randn(len(drawn["points"]), 5)}


def _places(generator: random.Random, kind: str) -> Arguments:
    case = next(case for case in map(draw_case, iter(lambda: generator.randrange(2**30), None)) if case.kind == kind)
    kernel = tuple(case.weight.shape[1:-1])
    return {"coordinates": case.coordinates, "shape": case.shape, "kernel": kernel, **case.options}


def _from_dense(generator: random.Random) -> Arguments:
    block_map = _attention(generator)["block_map"]
    return {"mask": block_map.to_dense(), "q_offsets": block_map.q_offsets, "kv_offsets": block_map.kv_offsets}


def _uniform(generator: random.Random) -> Arguments:
    length, blocks = (generator.randint(1, 70), generator.randint(1, 70)), (generator.randint(1, 20), 16)
    sizes = [-(-total // block) for total, block in zip(length, blocks, strict=True)]
    mask = torch.rand(1, 2, *sizes) < 0.5
    return {"mask": mask, "block_q": blocks[0], "block_kv": blocks[1], "q_length": length[0], "kv_length": length[1]}


def from_dense(mask: Any, q_offsets: Any, kv_offsets: Any) -> Any:
    """Return all that the map says of itself."""
    return _facts(BlockMap.from_dense(mask, q_offsets, kv_offsets))


def uniform(mask: Any, block_q: int, block_kv: int, q_length: int, kv_length: int) -> Any:
    """Return all that the map says of itself."""
    return _facts(BlockMap.uniform(mask, block_q, block_kv, q_length, kv_length))


def _facts(block_map: BlockMap) -> Any:
    mask = block_map.to_dense()
    return mask if mask.is_meta else (mask, block_map.pairs(), [block_map.density, block_map.draw()])


CALLS: tuple[tuple[Callable[..., Any], Callable[[random.Random], Arguments]], ...] = (
    (block_sparse_attention, _attention),
    (block_sparse_attention, _rounded_attention),
    (block_mass, _block_mass),
    (antidiagonal_scores, _antidiagonals),
    (pooled, _pooled),
    (kmeans, _kmeans),
    (centroid_log_error, _centroid_error),
    (merge_centroids, _merge),
    (rank_entries, _entries),
    (fill_budget, _budget),
    (sparse_conv, _convolution),
    (spike_conv, _spikes),
    (farthest_point_sampling, _sampling),
    (k_nearest_neighbors, _neighbors),
    (ball_query, _ball),
    (group, _groups),
    (three_nearest_interpolation, _interpolation),
    (submanifold_map, lambda generator: _places(generator, "submanifold")),
    (strided_map, lambda generator: _places(generator, "strided")),
    (transposed_map, lambda generator: _places(generator, "transposed")),
    (from_dense, _from_dense),
    (uniform, _uniform),
)

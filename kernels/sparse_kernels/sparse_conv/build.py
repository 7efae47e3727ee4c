"""Build kernel maps from coordinates: submanifold, strided and transposed, with the relations of spconv."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels.sparse_conv.coordinates import (
    LARGEST,
    check_coordinates,
    check_places,
    kernel_sizes,
    linear_keys,
    per_axis,
    slots,
)
from sparse_kernels.sparse_conv.kernel_map import KernelMap

Size = int | Sequence[int]


@torch.no_grad()
def submanifold_map(
    coordinates: Int[Tensor, "n columns"], shape: Sequence[int], kernel: Size, dilation: Size = 1
) -> KernelMap:
    """Return the map of a convolution whose outputs are its inputs (Graham and van der Maaten, 2017, section 2).

    Slot k reads `in = out + (k - kernel // 2) * dilation`. ValueError on even kernels, coordinates outside the shape
    and rows with equal coordinates.
    """
    shape = check_coordinates(coordinates, shape)
    kernel, dilation = kernel_sizes(kernel, len(shape)), per_axis("dilation", dilation, len(shape), 1)
    if not all(size % 2 for size in kernel):
        raise ValueError(
            f"kernel must be odd on every axis of a submanifold convolution, got {kernel}; "
            "use strided_map for an even one"
        )
    margin = [size // 2 * step for size, step in zip(kernel, dilation, strict=True)]
    keys, steps = linear_keys(coordinates, shape, margin)
    moves = [
        sum(
            (place - size // 2) * wide * step
            for place, size, wide, step in zip(slot, kernel, dilation, steps, strict=True)
        )
        for slot in slots(kernel)
    ]
    half = torch.tensor(moves[: len(moves) // 2], dtype=torch.int64, device=keys.device)
    forward, twin = _find_neighbors(keys, half)
    _refuse_twin(twin, coordinates)
    places = coordinates.int()
    return KernelMap(forward, forward.flip(0), places, shape, places, shape, kernel)


@torch.no_grad()
def strided_map(
    coordinates: Int[Tensor, "n columns"],
    shape: Sequence[int],
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> KernelMap:
    """Return the map of a convolution with an output wherever an input is reached, in ascending order of coordinates.

    Slot k reads `in = out * stride - padding + k * dilation`. ValueError as in `submanifold_map`.
    """
    shape = check_coordinates(coordinates, shape)
    settings = _settings(len(shape), kernel, stride, padding, dilation)
    out_shape = tuple(
        (size + 2 * border - wide * (length - 1) - 1) // step + 1
        for size, length, step, border, wide in zip(shape, *settings, strict=True)
    )
    _check_out_shape(out_shape, shape)

    return _reached_map(coordinates, shape, out_shape, settings, transposed=False)


@torch.no_grad()
def transposed_map(
    coordinates: Int[Tensor, "n columns"],
    shape: Sequence[int],
    kernel: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    output_padding: Size = 0,
) -> KernelMap:
    """Return the map of a transposed convolution, in ascending order of coordinates.

    Slot k writes `out = in * stride - padding + k * dilation`. ValueError as in `submanifold_map`.
    """
    shape = check_coordinates(coordinates, shape)
    settings = _settings(len(shape), kernel, stride, padding, dilation)
    extra = per_axis("output_padding", output_padding, len(shape), 0)
    out_shape = tuple(
        (size - 1) * step - 2 * border + wide * (length - 1) + 1 + more
        for size, length, step, border, wide, more in zip(shape, *settings, extra, strict=True)
    )
    _check_out_shape(out_shape, shape)

    return _reached_map(coordinates, shape, out_shape, settings, transposed=True)


def _settings(axes: int, kernel: Size, stride: Size, padding: Size, dilation: Size) -> list[tuple[int, ...]]:
    named = (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))
    return [kernel_sizes(kernel, axes), *(per_axis(name, value, axes, least) for name, value, least in named)]


def _check_out_shape(out_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if min(out_shape) < 1:
        raise ValueError(
            f"the shape {shape} is too small for this kernel: the output would be {out_shape}; "
            "add padding or give a smaller kernel"
        )
    if max(out_shape) >= LARGEST:
        raise ValueError(
            f"the output of the shape {shape} would be {out_shape}, and an axis holds at most 2^31 - 1 places; "
            "give a smaller stride, kernel, dilation or padding"
        )


def _reached_map(
    coordinates: Int[Tensor, "n columns"],
    shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    settings: list[tuple[int, ...]],
    transposed: bool,
) -> KernelMap:
    """Return the map whose outputs are all places that inputs reach, sorted."""
    keys, _ = linear_keys(coordinates, shape, [0] * len(shape))
    _refuse_twin(_find_neighbors(keys, keys.new_empty(0), level=5)[1], coordinates)
    check_places(coordinates, out_shape)
    table = torch.tensor([*settings, out_shape], device="cpu").T.contiguous()
    if _stays_in_torch(coordinates):
        reached = reach_places_reference(coordinates.long(), table, transposed)
    else:
        reached = torch.ops.sparse_kernels.reach_places_cpu(coordinates.long().contiguous(), table, transposed)
    places, forward, backward = reached
    outputs = _coordinates_of(places, out_shape)
    return KernelMap(forward, backward, outputs, out_shape, coordinates.int(), shape, settings[0])


def reach_places_reference(
    coordinates: Int[Tensor, "n columns"], settings: Int[Tensor, "axes 5"], transposed: bool
) -> tuple[Int[Tensor, " m"], Int[Tensor, "slots m"], Int[Tensor, "slots n"]]:
    """Return the numbers of the reached places in a grid of the output, ascending, and the map both ways, in torch.

    `settings` holds kernel, stride, padding, dilation and output size of each axis.
    """
    batch, *columns = coordinates.unbind(1)
    axes = settings.tolist()
    places = [
        [_reach(column, at, axis, transposed) for at in range(axis[0])]
        for column, axis in zip(columns, axes, strict=True)
    ]
    found = []  # for every slot: input rows, and the numbers of the outputs they reach
    for slot in slots([axis[0] for axis in axes]):
        hits = [places[axis][at] for axis, at in enumerate(slot)]
        inside = torch.stack([valid for _, valid in hits]).all(0).nonzero().flatten()
        target = torch.stack([batch[inside], *(target[inside] for target, _ in hits)], 1)
        found.append((inside, linear_keys(target, [axis[4] for axis in axes], [0] * len(axes))[0]))
    rows, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
    unique, outputs = numbers.unique(return_inverse=True)
    slot_of = torch.arange(len(found), device=rows.device).repeat_interleave(
        torch.tensor([len(inside) for inside, _ in found], device=rows.device)
    )
    forward = rows.new_full((len(found), len(unique)), -1, dtype=torch.int32)
    backward = rows.new_full((len(found), len(coordinates)), -1, dtype=torch.int32)
    forward[slot_of, outputs] = rows.int()
    backward[slot_of, rows] = outputs.int()
    return unique, forward, backward


def _reach(column: Int[Tensor, " n"], at: int, axis: list[int], transposed: bool) -> tuple[Tensor, Tensor]:
    """Return the place on one axis that each input reaches with slot `at`, and whether there is one."""
    _, stride, padding, dilation, size = axis
    if transposed:
        target = column * stride + (at * dilation - padding)
        return target, (target >= 0) & (target < size)
    moved = column + (padding - at * dilation)
    target = moved.div(stride, rounding_mode="floor")
    return target, (moved - target * stride == 0) & (target >= 0) & (target < size)


def _coordinates_of(keys: Int[Tensor, " n"], shape: tuple[int, ...]) -> Int[Tensor, "n columns"]:
    columns = []
    for size in reversed(shape):
        columns.append(keys % size)
        keys = keys // size
    return torch.stack([keys, *reversed(columns)], 1).int()


def _first_twin(ordered: Int[Tensor, " n"], order: Int[Tensor, " n"]) -> int:
    """Return a row whose key another row has, given all keys sorted and their rows; -1 without one."""
    twins = (ordered[1:] == ordered[:-1]).nonzero()
    return int(order[twins[0] + 1]) if len(twins) else -1


def _refuse_twin(row: int, coordinates: Int[Tensor, "n columns"]) -> None:
    if row >= 0:
        raise ValueError(
            f"coordinates must be unique, row {row} has those of another one: {coordinates[row].tolist()}; "
            "average or drop such rows first"
        )


def _find_neighbors(
    keys: Int[Tensor, " n"], steps: Int[Tensor, " half"], level: int = 4
) -> tuple[Int[Tensor, "slots n"], int]:
    """Return the rows whose key is larger by each step, the rows themselves and the mirror image; and a twin or -1.

    The user's line is `level` frames above.
    """
    if _stays_in_torch(keys):
        if keys.device.type == "cpu":
            warnings.warn(f"neighbours are searched for in torch: {_extension.load()}", stacklevel=level)
        return find_neighbors_reference(keys, steps)
    return torch.ops.sparse_kernels.find_neighbors_cpu(keys.contiguous(), steps)


def _stays_in_torch(x: Tensor) -> bool:
    """Return whether the C++ kernels cannot take a tensor: it is not on the CPU, or they are not there."""
    return x.device.type != "cpu" or _extension.load() is not None


def find_neighbors_reference(keys: Int[Tensor, " n"], steps: Int[Tensor, " half"]) -> tuple[Tensor, int]:
    """The same in torch, on any device: a sorted list and a binary search."""
    count, half = len(keys), len(steps)
    found = keys.new_full((2 * half + 1, count), -1, dtype=torch.int32)
    rows = torch.arange(count, dtype=torch.int32, device=keys.device)
    found[half] = rows
    ordered, order = keys.sort()
    twin = _first_twin(ordered, order)
    if twin >= 0 or count == 0:
        return found, twin
    for slot in range(half):
        wanted = keys + steps[slot]
        at = torch.searchsorted(ordered, wanted).clamp(max=count - 1)
        hit = ordered[at] == wanted
        found[slot] = torch.where(hit, order[at].int(), -1)
        found[-1 - slot][order[at[hit]]] = rows[hit]
    return found, -1

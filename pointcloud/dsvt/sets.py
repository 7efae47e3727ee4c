"""Sets: each window's voxels, sorted and cut into near-equal runs, with one sort and integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pointcloud.dsvt.windows import Windows


class SetLayout(NamedTuple):
    """The sets of one order as rows of equal length: what attention gathers, and where it finds a voxel again."""

    slots: Int[Tensor, "sets longest"]  # the voxel in each slot
    present: Bool[Tensor, "sets longest"]  # False where the slot only fills its row
    places: Int[Tensor, " voxels"]  # the flat slot of each voxel


@dataclass(frozen=True)
class Sets:
    """The sets of both orders: ranks run through windows and, inside, by y (order 0) or by x (order 1).

    A set is a run of ranks, so that it holds no voxel twice; the runs of both orders have the same bounds.
    """

    order: Int[Tensor, "2 voxels"]  # the voxel of each rank
    offsets: Int[Tensor, " sets1"]  # the first rank of each set
    windows: Int[Tensor, " windows1"]  # the first rank of each window
    set_size: int

    def layouts(self) -> tuple[SetLayout, SetLayout]:
        """Return the layouts of both orders, as wide as the longest set."""
        start, length = self.offsets[:-1], self.offsets.diff()
        slot = torch.arange(int(length.max()), device=start.device)
        present = slot < length[:, None]
        ranks = start[:, None] + slot.minimum(length[:, None] - 1)
        flat = present.flatten().nonzero().flatten()
        return tuple(  # pyright: ignore[reportReturnType]
            SetLayout(order[ranks], present, torch.empty_like(order).index_copy(0, order, flat)) for order in self.order
        )

    def padded(self) -> tuple[Int[Tensor, "2 sets set_size"], Bool[Tensor, "2 sets set_size"]]:
        """Return the published form: rows of `set_size` voxels with repeats, and True where a slot repeats another."""
        window, position, sets = _sets_of(self.windows.diff(), self.set_size)
        count = self.windows.diff()[window]
        slot = position[:, None] * self.set_size + torch.arange(self.set_size, device=window.device)
        rank = slot * count[:, None] // (sets * self.set_size)[:, None]
        voxels = self.order[:, self.windows[:-1][window][:, None] + rank]
        repeats = torch.zeros_like(voxels, dtype=torch.bool)
        repeats[..., 1:] = voxels[..., 1:] == voxels[..., :-1]
        return voxels, repeats


def partition(windows: Windows, set_size: int) -> Sets:
    """Return the sets of at most `set_size` voxels (DSVT, section 3.2, "dynamic set partition").

    The published slot k of set s of a window with n voxels in S sets holds rank floor((s set_size + k) n / (S
    set_size)). As n > (S - 1) set_size, these are the ranks from floor(s n / S) up to floor((s + 1) n / S), repeated.
    """
    x, y, z = windows.inside.unbind(1)
    width, height, depth = windows.size
    base = windows.index * (width * height * depth)
    keys = base + (y * width + x) * depth + z, base + (x * height + y) * depth + z
    order = torch.stack([key.argsort() for key in keys])
    counts = torch.unique_consecutive(windows.index[order[0]], return_counts=True)[1]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    window, position, sets = _sets_of(counts, set_size)
    offsets = torch.cat([starts[window] + position * counts[window] // sets, starts[-1:]])
    return Sets(order, offsets, starts, set_size)


def _sets_of(
    counts: Int[Tensor, " windows"], set_size: int
) -> tuple[Int[Tensor, " sets"], Int[Tensor, " sets"], Int[Tensor, " sets"]]:
    """Return for each set its window, its number in it, and how many sets that window has."""
    sets = (counts + set_size - 1) // set_size
    window = torch.repeat_interleave(sets)
    first = sets.cumsum(0) - sets
    return window, torch.arange(len(window), device=counts.device) - first[window], sets[window]

"""Random sparse tensors of spconv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHAPE = [9, 10, 11]


def make_scene(channels: int = 6, count: int = 150, seed: int = 0) -> Any:
    """Return two samples with unique coordinates in random order."""
    import spconv.pytorch as spconv

    generator = torch.Generator().manual_seed(seed)
    places = torch.cat([torch.randint(size, (count, 1), generator=generator) for size in (2, *SHAPE)], 1).unique(dim=0)
    places = places[torch.randperm(len(places), generator=generator)].int()
    return spconv.SparseConvTensor(torch.randn(len(places), channels, generator=generator), places, SHAPE, 2)


def dense_with(x: Any, empty: float) -> Tensor:
    """Return the dense tensor (batch c z y x) with a value where no row is."""
    grid = x.features.new_full((x.batch_size, *x.spatial_shape, x.features.shape[1]), empty)
    return grid.index_put(tuple(x.indices.long().T), x.features).movedim(-1, 1)

"""Random sparse tensors, and what torch's dense convolutions make of them."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparse_kernels.sparse_conv import KernelMap, strided_map, submanifold_map, transposed_map

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


@dataclass
class Case:
    """A convolution with everything drawn at random: kind, sizes, coordinates, features and weights in float64."""

    kind: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    coordinates: Tensor
    features: Tensor
    weight: Tensor  # (out, kernel, in a group)
    groups: int = 1

    def map(self) -> KernelMap:
        build = {"submanifold": submanifold_map, "strided": strided_map, "transposed": transposed_map}[self.kind]
        return build(self.coordinates, self.shape, tuple(self.weight.shape[1:-1]), **self.options)

    def dense(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """Return the dense convolution at the map's output coordinates."""
        grid = features.new_zeros(2, *self.shape, features.shape[1])
        grid = grid.index_put(tuple(self.coordinates.long().T), features).movedim(-1, 1)
        axes = len(self.shape)
        weight = weight.movedim(-1, 1)
        if self.kind == "transposed":
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
            out = TRANSPOSED[axes - 1](grid, weight, groups=self.groups, **self.options)
        else:
            same = {"padding": tuple(size // 2 * self.options["dilation"] for size in weight.shape[2:])}
            same = same if self.kind == "submanifold" else {}
            out = CONVOLUTIONS[axes - 1](grid, weight, groups=self.groups, **self.options, **same)
        assert tuple(out.shape[2:]) == kernel_map.shape
        return out.movedim(1, -1)[tuple(kernel_map.coordinates.long().T)]


def draw_case(seed: int) -> Case:
    """Return a random case of one to three axes and two batches."""
    generator, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    kind, axes = generator.choice(("submanifold", "strided", "transposed")), generator.randint(1, 3)
    shape = tuple(generator.randint(5, 9) for _ in range(axes))
    kernel = [generator.choice((1, 3, 5) if kind == "submanifold" else (1, 2, 3)) for _ in range(axes)]
    options = {"dilation": generator.randint(1, 2)}
    if kind != "submanifold":
        options |= {"stride": generator.randint(1, 3), "padding": generator.randint(0, 1)}
    channels = generator.randint(1, 40), generator.randint(1, 40)
    places = (torch.rand(2, *shape, generator=numbers) < generator.choice((0.05, 0.4, 0.9))).nonzero().int()
    places = places[torch.randperm(len(places), generator=numbers)]
    features = torch.randn(len(places), channels[0], dtype=torch.float64, generator=numbers)
    weight = torch.randn(channels[1], *kernel, channels[0], dtype=torch.float64, generator=numbers)
    return Case(kind, options, shape, places, features, weight)


def draw_grouped_case(seed: int) -> Case:
    """Return a random case in groups, every third one depthwise."""
    generator, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    case = draw_case(seed)
    groups = generator.randint(2, 20)
    each = (1 if seed % 3 == 0 else generator.randint(1, 20)), generator.randint(1, 20)
    kernel = case.weight.shape[1:-1]
    features = torch.randn(len(case.features), groups * each[0], dtype=torch.float64, generator=numbers)
    weight = torch.randn(groups * each[1], *kernel, each[0], dtype=torch.float64, generator=numbers)
    return dataclasses.replace(case, features=features, weight=weight, groups=groups)

"""Which input row meets which output row in every slot of a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_kernels._checks import described
from sparse_kernels._tensors import same_fields


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The neighbourhoods of a sparse convolution: built once from coordinates, used by every layer that shares them.

    `forward` holds, for each slot of the kernel (row-major, last axis fastest) and each output row, the input row it
    reads, or -1; `backward` the same with the roles exchanged. Coordinates are (batch, then one column for each axis
    of `shape`), as in spconv.
    """

    forward: Int[Tensor, "slots outputs"]
    backward: Int[Tensor, "slots inputs"]
    coordinates: Int[Tensor, "outputs columns"]
    shape: tuple[int, ...]
    input_coordinates: Int[Tensor, "inputs columns"]
    input_shape: tuple[int, ...]
    kernel: tuple[int, ...]

    def __post_init__(self) -> None:
        slots = math.prod(self.kernel)
        for name in ("coordinates", "input_coordinates"):
            if not isinstance(places := getattr(self, name), Tensor) or places.ndim != 2:
                raise ValueError(f"{name} must be a tensor (rows, batch and axes), got {described(places)}")
        for name, places in (("forward", self.coordinates), ("backward", self.input_coordinates)):
            field = getattr(self, name)
            if not isinstance(field, Tensor) or field.dtype != torch.int32 or field.shape != (slots, len(places)):
                raise ValueError(
                    f"{name} must be torch.int32 {(slots, len(places))} for kernel {self.kernel} and its coordinates, "
                    f"got {described(field)}"
                )

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers are the same; reads from the device."""
        return same_fields(self, other)

    def __hash__(self) -> int:
        return hash((self.forward.shape, self.backward.shape))

    def inverse(self) -> KernelMap:
        """Return the map of the inverse convolution, which leads back to the input's coordinates."""
        return KernelMap(
            self.backward,
            self.forward,
            self.input_coordinates,
            self.input_shape,
            self.coordinates,
            self.shape,
            self.kernel,
        )

    def pairs(self) -> int:
        """Return how many pairs of an input and an output row there are; reads from the device."""
        return int((self.forward >= 0).sum())

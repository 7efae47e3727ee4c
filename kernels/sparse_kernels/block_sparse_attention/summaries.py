"""What answers for the keys of a block that is not visited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sparse_kernels._checks import check_shared, described
from sparse_kernels._tensors import same_fields
from sparse_kernels.block_map import BlockMap


@dataclass(frozen=True, eq=False)
class Summaries:
    """One key for each key block: the mean of its keys and of its values, and the logarithm of how many keys those are.

    Where a query block does not visit a key block, q mean_key scale + weight is one more logit of the same softmax,
    with the mean value (SVG-EAR, arXiv 2603.08982, section 4). A weight of -inf keeps a block silent, as one of no
    keys; its numbers have to be finite all the same. b or h may be 1 in all three, which shares them.
    """

    keys: Float[Tensor, "b h nk d"]
    values: Float[Tensor, "b h nk d"]
    weights: Float[Tensor, "b h nk"]

    def __post_init__(self) -> None:
        for name, dimensions in (("keys", 4), ("values", 4), ("weights", 3)):
            field = getattr(self, name)
            if not isinstance(field, Tensor) or not field.is_floating_point() or field.ndim != dimensions:
                raise ValueError(
                    f"summaries.{name} must be a floating-point tensor with {dimensions} dimensions, "
                    f"got {described(field)}"
                )
        if self.values.shape != self.keys.shape or self.weights.shape != self.keys.shape[:3]:
            raise ValueError(
                "summaries must hold a key, a value and a weight for each key block, got "
                f"{tuple(self.keys.shape)}, {tuple(self.values.shape)} and {tuple(self.weights.shape)}"
            )

    def __eq__(self, other: object) -> bool:
        """Return whether all numbers are the same; reads from the device."""
        return same_fields(self, other)

    def __hash__(self) -> int:
        return hash(self.keys.shape)

    @property
    def requires_grad(self) -> bool:
        """Whether any of the numbers is to have a gradient."""
        return self.keys.requires_grad or self.values.requires_grad or self.weights.requires_grad

    def of_heads(self) -> tuple[Float32[Tensor, "b h nk d"], Float32[Tensor, "b h nk d"], Float32[Tensor, "b h nk"]]:
        """Return keys, values and weights as kernels take them: float32, contiguous."""
        return self.keys.float().contiguous(), self.values.float().contiguous(), self.weights.float().contiguous()


def check_summaries(summaries: Any, q: Tensor, block_map: BlockMap) -> None:
    """Refuse what are not the summaries of the map's key blocks for the heads of `q`; on the CPU weights are read."""
    if not isinstance(summaries, Summaries):
        raise ValueError(f"summaries must be Summaries or None, got {described(summaries)}")
    fields = {f"summaries.{name}": field for name, field in vars(summaries).items()}
    check_shared(q=q, **fields)
    wanted = (block_map.kv_offsets.shape[-1] - 1, q.shape[3])
    if summaries.keys.shape[2:] != wanted:
        raise ValueError(
            f"summaries must be those of the map's {wanted[0]} key blocks in {wanted[1]} channels, "
            f"got {summaries.keys.shape[2]} in {summaries.keys.shape[3]}"
        )
    if q.device.type == "cpu" and not bool((summaries.weights < torch.inf).all()):
        raise ValueError(
            "summaries.weights must be finite, or -inf for no answer, got NaN or inf: give the logarithm of a count"
        )


def heard_weights(block_map: BlockMap, weights: Float[Tensor, "#b #h nk"]) -> Float[Tensor, "b h nq nk"]:
    """Return the weights of the summaries that each query block hears, -inf for blocks that it visits itself."""
    return weights[:, :, None].masked_fill(block_map.to_dense(), -torch.inf)

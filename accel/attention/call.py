"""What a method is told about one attention call, and what it may remember."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The latent grid after patchifying, in tokens, and where text sits in the sequence (first, last or none)."""

    frames: int
    height: int
    width: int
    text_position: str = "none"
    text_length: int = 0

    @property
    def video_tokens(self) -> int:
        """Number of video tokens."""
        return self.frames * self.height * self.width

    @property
    def frame_tokens(self) -> int:
        """Number of video tokens in one latent frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Length of the attention sequence."""
        return self.video_tokens + self.text_length


@dataclass(frozen=True)
class Progress:
    """Where the denoising loop is: step 0 to steps - 1, and the guidance branch of this call."""

    step: int
    steps: int
    branch: str

    @property
    def fraction(self) -> float:
        """Share of the steps that lie behind."""
        return self.step / self.steps


@dataclass(frozen=True)
class AttentionCall:
    """Queries, keys and values after norm and rotary embedding, and where in model, grid and time they belong."""

    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s d"]
    layer: int
    layers: int
    geometry: Geometry
    progress: Progress

    @property
    def scale(self) -> float:
        """The softmax scale, head_dim**-0.5."""
        return 1 / math.sqrt(self.q.shape[-1])


@dataclass
class LayerMemory:
    """What a method keeps between the steps of one generation, for one layer, branch and geometry."""

    values: dict[str, Any] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Return the size of all tensors kept, in bytes."""
        return sum(x.numel() * x.element_size() for x in _tensors(self.values))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [tensor for name in value.__dataclass_fields__ for tensor in _tensors(getattr(value, name))]
    return []

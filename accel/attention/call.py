"""What a method is told about one attention call, and what it may remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from accel.attention.heads import HeadShare

State = TypeVar("State")


@dataclass(frozen=True)
class Geometry:
    """The latent grid after patchifying, in tokens, and how many rows stand before and after it in the sequence.

    Those hold text, audio, key frames or history. Only this class knows where they are: all others ask for the `video`
    rows and the `kept` ones. Where a forward call does not tell how many there are, `rest` says on which side those
    stand that an attention call turns out to have.
    """

    frames: int
    height: int
    width: int
    before: int = 0
    after: int = 0
    rest: str | None = None

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of this length can hold the grid and what stands around it."""
        return tokens == self.tokens if self.rest is None else tokens >= self.tokens

    def filled_to(self, tokens: int) -> Geometry:
        """Return the geometry of a sequence of this length, which fits."""
        if self.rest is None:
            return self
        more = {self.rest: getattr(self, self.rest) + tokens - self.tokens}
        return replace(self, rest=None, **more)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the grid."""
        return self.frames, self.height, self.width

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
        return self.before + self.video_tokens + self.after

    @property
    def has_rest(self) -> bool:
        """Whether there are rows that are no video."""
        return self.tokens > self.video_tokens

    @property
    def video(self) -> slice:
        """Rows of the sequence that hold the grid, frame by frame and row by row."""
        return slice(self.before, self.before + self.video_tokens)

    def rest_rows(self, device: torch.device | str = "cpu") -> Int[Tensor, " r"]:
        """Return the rows that are no video; on a GPU nothing waits for it."""
        start, stop = self.video.start, self.video.stop
        return torch.cat([torch.arange(start, device=device), torch.arange(stop, self.tokens, device=device)])

    def kept(self, device: torch.device | str = "cpu") -> Bool[Tensor, " s"]:
        """Return which rows are no video: always exact as keys and dense as queries."""
        rows = torch.ones(self.tokens, dtype=torch.bool, device=device)
        rows[self.video] = False
        return rows


@dataclass(frozen=True)
class Progress:
    """Where the denoising loop is: step 0 to steps - 1, and the guidance branch of this call.

    `sample` is the row of the batch where each one runs by itself, None where all run together. `first` is the first
    step that runs: a loop that begins with a picture or a video leaves out those before.
    """

    step: int
    steps: int
    branch: str
    sample: int | None = None
    first: int = 0

    @property
    def number(self) -> int:
        """Which of the steps that run this one is, from 0."""
        return self.step - self.first

    @property
    def runs(self) -> int:
        """How many steps run in all."""
        return self.steps - self.first

    @property
    def is_last(self) -> bool:
        """Whether no step comes after this one."""
        return self.step + 1 == self.steps


@dataclass(frozen=True)
class AttentionCall:
    """Queries, keys and values after norm and rotary embedding, and where in model, grid and time they belong.

    `dense` computes attention over all keys: by the backend that the user has `chosen`, else by the faster of ours and
    the pipeline's own. Where devices share the heads, `share` says which these are.
    """

    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s d"]
    layer: int
    layers: int
    geometry: Geometry
    progress: Progress
    scale: float
    dense: Callable[[], Float[Tensor, "b h s d"]]
    chosen: bool = False
    share: HeadShare | None = None

    def all_heads(self, x: Shaped[Tensor, "b h *rest"]) -> Shaped[Tensor, "b h2 *rest"]:
        """Return a value of each head for all heads of the layer, from those of this call."""
        return x if self.share is None else self.share.all(x)

    def own_heads(self, x: Shaped[Tensor, "b h2 *rest"]) -> Shaped[Tensor, "b h *rest"]:
        """Return of the values of all heads those of this call's."""
        return x if self.share is None else self.share.own(x, self.q.shape[1])


@dataclass
class LayerMemory:
    """What a method keeps between the steps of one generation, for one layer, branch and geometry."""

    state: Any = None

    def of(self, kind: type[State]) -> State:
        """Return the state of a method's own type, made anew where there is none yet."""
        if not isinstance(self.state, kind):
            self.state = kind()
        return self.state

    def nbytes(self) -> int:
        """Return the size of all tensors kept, in bytes."""
        return sum(x.numel() * x.element_size() for x in _tensors(self.state))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in _tensors(getattr(value, field.name))]
    return []

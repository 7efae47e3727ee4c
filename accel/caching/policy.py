"""What a cache policy is: which stretches of blocks it decides about, and whether they are computed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from accel.attention.call import Progress
from accel.caching.forecast import History
from accel.models.adapters.adapter import Adapter
from accel.naming import check_kinds

State = TypeVar("State")
DIGITS = 12  # of a digest: enough to tell a few files apart


@dataclass(frozen=True)
class Compute:
    """Run the blocks."""


@dataclass(frozen=True)
class Reuse:
    """Add what the blocks added when they were last computed, or the forecast of that order."""

    order: int = 0


@dataclass(frozen=True)
class Skip:
    """Leave the blocks out: what goes in comes out."""


@dataclass(frozen=True)
class Narrow:
    """Run the blocks, with that share of their MLPs' hidden neurons: the first ones."""

    width: float


Decision = Compute | Reuse | Skip | Narrow


@dataclass(frozen=True)
class BlockCall:
    """What goes into a stretch of blocks, and where that belongs in model and time.

    `x` are the hidden states, or the latents where the whole transformer is one stretch; `entry` is what went into its
    first block. One sample has a batch of 1 where a policy decides by content. `time` is the timestep embedding, there
    for policies that ask for it.
    """

    x: Float[Tensor, "b ..."]
    entry: Float[Tensor, "b ..."]
    blocks: range
    progress: Progress
    time: Float[Tensor, "b channels"] | None = None

    @property
    def step(self) -> int:
        """The index of the denoising loop."""
        return self.progress.step


class Memory:
    """What a policy keeps between the calls of one generation, in types of its own, and what the blocks added.

    `find(kind, key)` returns the same object for the same kind and key until the generation ends.
    """

    def __init__(self, find: Callable[[type[Any], tuple[Any, ...]], Any], call: BlockCall):
        self._find = find
        self._shape = tuple(call.x.shape)
        self._blocks, self._branch, self._sample = call.blocks, call.progress.branch, call.progress.sample

    def history(self, branch: str | None = None, stream: int = 0) -> History:
        """Return what these blocks added in this guidance branch, or in another, to one of the streams."""
        return self._find(History, (self._shape, self._sample, branch or self._branch, self._blocks, stream))

    def own(self, kind: type[State]) -> State:
        """Return the state of these blocks in this branch."""
        return self._find(kind, (self._shape, self._sample, self._branch, self._blocks))

    def branch(self, kind: type[State]) -> State:
        """Return the state of all blocks in this branch."""
        return self._find(kind, (self._shape, self._sample, self._branch))

    def shared(self, kind: type[State]) -> State:
        """Return the state of all branches."""
        return self._find(kind, (self._shape, self._sample))


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A frozen dataclass of published hyper-parameters that decides about each stretch of blocks.

    `order` is that of the forecast where something is reused: 0 repeats, 1 extrapolates. The first `warmup` steps that
    run are computed: a share of them below 1 (rounded up), else their number. It has nothing to do with the dense
    warm-up of an attention method, which says how the calls that are computed are computed.
    """

    order: int = 0
    warmup: float = 0.2

    by_content: ClassVar[bool] = True
    """Whether decisions look at the tensors: then each sample of a batch is decided, and run, by itself."""

    by_time: ClassVar[bool] = False
    """Whether decisions look at the timestep embedding."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_choice(self, (0, 1), "order")
        check_steps(self, "warmup")

    def units(self, depth: int) -> tuple[range, ...] | None:
        """Return the stretches of blocks that are decided about, of `depth` in all; None is the whole transformer.

        Blocks in none of them always run. InputError where the policy does not fit a model of that depth.
        """
        return None

    def check(self, transformer: nn.Module, adapter: Adapter) -> None:
        """Raise InputError if the policy does not fit a transformer, before anything is attached."""
        return None

    def check_schedule(self, steps: int) -> None:
        """Raise InputError if the policy does not fit a generation of so many steps."""
        return None

    def digest(self) -> str | None:
        """Return what tells apart policies with equal options that have read other files; None where none are read."""
        return None

    @property
    def takes_whole(self) -> bool:
        """Whether it decides about the whole transformer where no stack of blocks is known."""
        return False

    def computed_steps(self, steps: int) -> list[int] | None:
        """Return which of the steps compute something, where that is known before a generation."""
        return None

    @property
    def narrows(self) -> bool:
        """Whether MLPs may run with a part of their hidden neurons."""
        return False

    @property
    def reuses(self) -> bool:
        """Whether what blocks add is kept for later steps."""
        return True

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Return weights that the transformer has as long as the policy is attached, by their names in it."""
        return {}

    @abstractmethod
    def decide(self, call: BlockCall, memory: Memory) -> Decision:
        """Decide about one stretch in one call; what cannot be reused yet is computed, whatever is decided."""

    def warming(self, progress: Progress) -> bool:
        """Whether a step lies in the warm-up."""
        return progress.number < step_count(self.warmup, progress.runs)


def step_count(value: float, steps: int) -> int:
    """Return how many steps a share below 1 (rounded up) or a number stands for."""
    return int(value) if value >= 1 else math.ceil(value * steps - 1e-9)


def check_choice(policy: Any, accepted: tuple[Any, ...], *names: str) -> None:
    """Raise ValueError unless every named field is one of these."""
    for name in names:
        if getattr(policy, name) not in accepted:
            choices = " or ".join(str(value) for value in accepted)
            raise ValueError(f"{name} must be {choices}, got {getattr(policy, name)}")


def check_steps(policy: Any, *names: str) -> None:
    """Raise ValueError unless every named field is a share below 1 or a whole number of steps."""
    for name in names:
        value = getattr(policy, name)
        if value < 0 or (value >= 1 and value != int(value)):
            raise ValueError(f"{name} must be a share below 1 or a whole number of steps, got {value}")

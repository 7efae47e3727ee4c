"""What the blocks of a stack hand on: hidden states, and in many families the text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

HIDDEN, TEXT = "hidden_states", "encoder_hidden_states"  # as diffusers names them


@dataclass(frozen=True)
class Streams:
    """The streams in the order in which a block gives them; it takes the hidden states first, and the text behind them.

    Here hidden states always come first. What a last block does not give (Stable Diffusion 3's text) is None.
    """

    given: tuple[str, ...] = (HIDDEN,)

    @property
    def taken(self) -> tuple[str, ...]:
        """The names of the streams in the order in which a block takes them."""
        return (HIDDEN, TEXT)[: len(self.given)]

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return what goes into a block, by position or by name."""
        return tuple(args[place] if place < len(args) else kwargs[name] for place, name in enumerate(self.taken))

    def outputs(self, output: Any) -> tuple[Tensor | None, ...]:
        """Return what came out of a block."""
        given = dict(zip(self.given, output if len(self.given) > 1 else (output,), strict=True))
        return tuple(given[name] for name in self.taken)

    def packed(self, streams: tuple[Tensor | None, ...]) -> Any:
        """Return streams in the form of a block's output."""
        values = dict(zip(self.taken, streams, strict=True))
        return tuple(values[name] for name in self.given) if len(self.given) > 1 else streams[0]


ALONE = Streams()
TEXT_SECOND = Streams((HIDDEN, TEXT))
TEXT_FIRST = Streams((TEXT, HIDDEN))


def with_controls(
    starts: tuple[Tensor, ...], outputs: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return a stretch's starts with what the model itself added between two blocks, as a ControlNet's residuals.

    The model adds that again where the blocks rest: it is none of what they add.
    """
    return tuple(
        # On another device `x` is a copy.
        start if output is None or x is output else start + (x.to(output.device) - output).to(start.device)
        for start, output, x in zip(starts, outputs, inputs, strict=True)
    )

"""A transformer under its routers with gradients: hard decisions forward, those of the probabilities backward.

Elastic Diffusion Transformer (arXiv 2602.13993): a block adds g (B(x) - x), hidden neurons of its MLP are masked, both
with straight-through estimators (Bengio et al., arXiv 1308.3432). Every block runs: what a gate would be worth is not
known otherwise. Where they rest by reuse, all of them add p (B(x) - x) + (1 - p) d, with the probability itself and
what they added at an earlier step. Inference is `accel.routing.policy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from accel.caching.elastic import check_elastic, kept_neurons
from accel.caching.resting import mean_time
from accel.errors import InputError
from accel.models.adapters.adapter import Adapter
from accel.routing.router import Routers

THRESHOLD = 0.5


class Decisions(NamedTuple):
    """What the routers of all blocks said about each sample.

    `gates` are 0 or 1 and `widths` shares of the MLP, both with the gradient of `probabilities` and `expected` widths.
    """

    probabilities: Float[Tensor, "depth b"]
    gates: Float[Tensor, "depth b"]
    expected: Float[Tensor, "depth b"]
    widths: Float[Tensor, "depth b"]


@dataclass
class Pass:
    """What is known so far in one forward pass; the mask is that of the block that runs.

    `earlier` is what all blocks added at an earlier step, `entry` what goes into the first one, where they rest by
    reuse.
    """

    earlier: Tensor | None = None
    entry: Tensor | None = None
    time: Tensor | None = None
    gate: Tensor | None = None
    mask: Tensor | None = None
    said: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


class _Entered(Exception):
    """The first block has been reached."""


class RoutedTransformer(nn.Module):
    """A transformer with routers, as one module to train; nothing stays on the transformer between two passes.

    InputError if accel does not know its blocks and timestep embedding or, where the routers have widths, its MLPs.
    """

    def __init__(self, transformer: nn.Module, routers: Routers, adapter: Adapter):
        super().__init__()
        if adapter.blocks is None or adapter.time_embedding is None:
            raise InputError(f"{type(transformer).__name__} has no blocks or timestep embedding that accel knows")
        self.transformer, self.routers, self.adapter = transformer, routers, adapter
        self.stack = tuple(adapter.blocks(transformer))
        if self._narrows:
            check_elastic(transformer, adapter)

    @property
    def _narrows(self) -> bool:
        return len(self.routers.config.widths) > 1

    def forward(
        self,
        latents: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text: Float[Tensor, "b tokens channels"],
        earlier: Float[Tensor, "b _ _"] | None = None,
    ) -> tuple[Float[Tensor, "b c t h w"], Decisions]:
        """Return the velocity (towards noise), and what was decided; `earlier` is of `added`, for rests by reuse."""
        now = Pass(earlier)
        with self._hooks(now):
            velocity = self.transformer(latents, timestep, text, return_dict=False)[0]
        return velocity, Decisions(*(torch.stack(values) for values in zip(*now.said, strict=True)))

    @torch.no_grad()
    def added(
        self,
        latents: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text: Float[Tensor, "b tokens channels"],
    ) -> Float[Tensor, "b _ _"]:
        """Return what all blocks together add to their tokens."""
        seen: list[Any] = []
        entering = self.stack[0].register_forward_pre_hook(
            lambda block, args, kwargs: seen.append(_entering(args, kwargs)), with_kwargs=True
        )
        leaving = self.stack[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
        with entering, leaving:
            self.transformer(latents, timestep, text, return_dict=False)
        first, last = seen
        return last - first

    def probabilities(
        self,
        latents: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text: Float[Tensor, "b tokens channels"],
    ) -> Float[Tensor, "1 b"]:
        """Return what the router before all blocks says, and run none of them."""
        now = Pass()

        def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now.entry = _entering(args, kwargs)
            raise _Entered

        assert self.adapter.time_embedding is not None
        embedding = self.adapter.time_embedding(self.transformer)
        noting = embedding.register_forward_hook(partial(_note_time, now))
        stopping = self.stack[0].register_forward_pre_hook(stop, with_kwargs=True)
        with noting, stopping, suppress(_Entered), torch.no_grad():
            self.transformer(latents, timestep, text, return_dict=False)
        assert now.entry is not None and now.time is not None
        return self.routers(0, now.entry, now.time)[0].sigmoid()[None]

    @contextmanager
    def _hooks(self, now: Pass) -> Iterator[None]:
        """Listen to the blocks, the last layers of their MLPs and the timestep embedding, for one pass."""
        assert self.adapter.time_embedding is not None
        embedding = self.adapter.time_embedding(self.transformer)
        handles: list[Any] = [embedding.register_forward_hook(partial(_note_time, now))]
        try:
            if self.routers.config.rest == "reuse":
                first, last = self.stack[0], self.stack[-1]
                handles.append(first.register_forward_pre_hook(partial(self._decide, now, 0), with_kwargs=True))
                handles.append(last.register_forward_hook(partial(_blend_all, now)))
                yield
                return
            for index, block in enumerate(self.stack):
                handles.append(block.register_forward_pre_hook(partial(self._decide, now, index), with_kwargs=True))
                handles.append(block.register_forward_hook(partial(_blend, now), with_kwargs=True))
                if self._narrows:
                    handles.append(self._last(block).register_forward_pre_hook(partial(_mask, now)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _decide(self, now: Pass, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ask the router of a block that is about to run."""
        assert now.time is not None
        now.entry = x = _entering(args, kwargs)
        gate, width = self.routers(index, x, now.time)
        probability, shares = gate.sigmoid(), width.softmax(-1)
        hard = (probability >= THRESHOLD).to(probability.dtype)
        decided = probability if self.routers.config.rest == "reuse" else straight_through(hard, probability)
        values = shares.new_tensor(self.routers.config.widths)
        chosen, expected = values[width.argmax(-1)], (shares * values).sum(-1)
        now.gate = decided
        now.said.append((probability, decided, expected, straight_through(chosen, expected)))
        if self._narrows:
            now.mask = prefix_mask(shares, width.argmax(-1), self._prefixes(block, shares))

    def _last(self, block: nn.Module) -> Any:
        assert self.adapter.mlp is not None
        return self.adapter.mlp(block)[1]

    def _prefixes(self, block: nn.Module, like: Tensor) -> Float[Tensor, "widths neurons"]:
        """Return a row of ones and zeros for each width."""
        neurons = self._last(block).in_features
        kept = torch.tensor([kept_neurons(width, neurons) for width in self.routers.config.widths], device=like.device)
        return (torch.arange(neurons, device=like.device) < kept[:, None]).to(like.dtype)


def straight_through(value: Tensor, soft: Tensor) -> Tensor:
    """Return a value exactly, with the gradient of what it came from."""
    return value + (soft - soft.detach())


def prefix_mask(
    shares: Float[Tensor, "b widths"], chosen: Tensor, prefixes: Float[Tensor, "widths neurons"]
) -> Float[Tensor, "b neurons"]:
    """Return the prefix of the chosen width, with the gradient of the mixture of all."""
    return straight_through(prefixes[chosen], shares @ prefixes)


def _note_time(now: Pass, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    now.time = mean_time(output)


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _blend_all(now: Pass, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return what all blocks leave if they rest, moved to what comes out by the probability that they run."""
    assert now.gate is not None and now.entry is not None and now.earlier is not None
    rested = now.entry + now.earlier.to(now.entry.dtype)
    return torch.lerp(rested, output.to(rested.dtype), now.gate[:, None, None].to(rested.dtype))


def _blend(now: Pass, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """Return what goes in, moved by the gate to what comes out; exactly one of both forward."""
    assert now.gate is not None
    x = _entering(args, kwargs)
    return torch.lerp(x, output, now.gate[:, None, None].to(x.dtype))


def _mask(now: Pass, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    assert now.mask is not None
    return (inputs[0] * now.mask[:, None].to(inputs[0].dtype), *inputs[1:])

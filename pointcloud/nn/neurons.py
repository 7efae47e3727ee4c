"""Spiking neurons. A neuron keeps nothing: its membrane potential is given to it and returned, once each step."""

from __future__ import annotations

from typing import Any, Literal, no_type_check

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from pointcloud.nn.surrogates import Surrogate, arctangent, fire

MOST_BUNDLED = 255
Reset = Literal["hard", "soft"]
Step = tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]
LastStep = tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"] | None]


class LIF(nn.Module):
    """The leaky integrate-and-fire neuron: u = decay h + current, a spike where u >= threshold, then the reset.

    `decay` is the share of the potential that a step leaves, in [0, 1]; 1 leaks nothing. A hard reset leaves 0, a soft
    one takes the threshold away. Gradients flow through the reset too, unless `detach_reset`. ValueError on settings
    that are out of range.
    """

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        reset: Reset = "hard",
        surrogate: Surrogate = arctangent,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        _check_decay("decay", decay)
        _check_spiking(threshold, reset)
        self.decay, self.threshold, self.reset = decay, threshold, reset
        self.surrogate, self.detach_reset = surrogate, detach_reset

    def forward(self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None) -> Step:
        """Return the spikes of a step, 0 or 1, and the membrane potential after it; None is a potential of 0."""
        potential = current if membrane is None else self.decay * membrane + current
        return spike_and_reset(potential, self.threshold, self.reset, self.surrogate, self.detach_reset)


class PLIF(nn.Module):
    """The LIF neuron that learns its leak, decay = 1 - sigmoid(leak) (Fang et al., arXiv 2007.05785, section 3.2).

    The input is not scaled by the leak, as SpikePoint has it (arXiv 2310.07189). Arguments and errors as those of LIF;
    `decay` is what training begins with, strictly between 0 and 1.
    """

    def __init__(
        self,
        decay: float = 0.5,
        threshold: float = 1.0,
        reset: Reset = "hard",
        surrogate: Surrogate = arctangent,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie strictly between 0 and 1 for a leak that learns, got {decay}")
        _check_spiking(threshold, reset)
        self.leak = nn.Parameter(torch.logit(torch.tensor(1 - decay, dtype=torch.float64)).float())
        self.threshold, self.reset = threshold, reset
        self.surrogate, self.detach_reset = surrogate, detach_reset

    def forward(self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None) -> Step:
        """Return the spikes of a step, 0 or 1, and the membrane potential after it; None is a potential of 0."""
        potential = current if membrane is None else (1 - torch.sigmoid(self.leak)) * membrane + current
        return spike_and_reset(potential, self.threshold, self.reset, self.surrogate, self.detach_reset)


class IntegerLIF(nn.Module):
    """The neuron that trains on integers: n = round(clamp(u, 0, levels)), and n is taken off the potential.

    Halves are rounded up. The gradient is 1 where 0 < u < levels, else 0. This is I-LIF (Luo et al., SpikeYOLO, arXiv
    2407.20708, section 3.3); in one step without a state it is the activation of E-3DSNN (arXiv 2412.07360). `spikes`
    gives the same n as spikes of 0 and 1. ValueError on settings that are out of range.
    """

    def __init__(self, levels: int = 4, decay: float = 0.5) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels must be 1 or more, got {levels}")
        _check_decay("decay", decay)
        self.levels, self.decay = levels, decay

    def forward(
        self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None, keep: bool = True
    ) -> LastStep:
        """Return the integers of a step, 0 to `levels`, and the membrane potential after it; None is one of 0.

        The last step of a network has no use for the latter: without `keep` it is None.
        """
        potential = self._potential(current, membrane)
        counts = potential.detach().clamp(0, self.levels).add_(0.5).floor_()
        if potential.requires_grad and torch.is_grad_enabled():
            counts = _StraightThrough.apply(counts, potential, self.levels, 1.0)
        return counts, potential - counts if keep else None

    def spikes(
        self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None
    ) -> tuple[Float[Tensor, " levels *shape"], Float[Tensor, "*shape"]]:
        """Return the step as `levels` steps of spikes, 0 or 1, that add up to the integers, and the potential after it.

        They are those of a neuron that starts half a threshold above the potential, leaks nothing and resets softly.
        Each of them gets its share of the integer's gradient, so that training goes on as with integers.
        """
        potential = self._potential(current, membrane)
        steps = self._fired(potential).to(potential.dtype)
        if potential.requires_grad:
            steps = _StraightThrough.apply(steps, potential.expand_as(steps), self.levels, 1 / self.levels)
        return steps, potential - steps.sum(0)

    @torch.no_grad()
    def fired(
        self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None, keep: bool = True
    ) -> tuple[Bool[Tensor, " levels *shape"], Float[Tensor, "*shape"] | None]:
        """Return the same as bool, without a gradient: a quarter of the bytes; `keep` as in `forward`."""
        potential = self._potential(current, membrane)
        after = potential - (potential.clamp(0, self.levels) + 0.5).floor() if keep else None
        return self._fired(potential), after

    @torch.no_grad()
    def bundle(
        self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None, keep: bool = True
    ) -> tuple[UInt8[Tensor, "*shape"], Float[Tensor, "*shape"] | None]:
        """Return how many of these spikes each neuron sends, one byte in place of `levels` numbers, without a gradient.

        ValueError where a byte is too small for `levels`; `keep` as in `forward`.
        """
        if self.levels > MOST_BUNDLED:
            raise ValueError(f"a byte holds up to {MOST_BUNDLED} spikes, these neurons send up to {self.levels}")
        potential = self._potential(current, membrane)
        counts = potential.clamp(0, self.levels).add_(0.5).to(torch.uint8)  # which cuts off what is behind the point
        return counts, potential - counts if keep else None

    def _fired(self, potential: Float[Tensor, "*shape"]) -> Bool[Tensor, " levels *shape"]:
        """Return in which steps a spike leaves; a reset takes 1 off, exactly, so that none has to wait for another."""
        steps = torch.empty(self.levels, *potential.shape, dtype=torch.bool, device=potential.device)
        left = potential.detach() + 0.5
        for level, step in enumerate(steps):
            torch.ge(left, level + 1, out=step)
        return steps

    def _potential(self, current: Tensor, membrane: Tensor | None) -> Tensor:
        return current if membrane is None else self.decay * membrane + current


class Rectified(nn.Module):
    """What the same network without spikes has in place of a neuron: ReLU, and no state."""

    def forward(
        self, current: Float[Tensor, "*shape"], membrane: Float[Tensor, "*shape"] | None = None, keep: bool = True
    ) -> Step:
        """Return the rectified current, and the current for a potential, which the next step does not see."""
        return torch.relu(current), current


def run_steps(neuron: LIF | PLIF, currents: Float[Tensor, " steps *places"]) -> Float[Tensor, " steps *places"]:
    """Return the spikes of a neuron at every place, 0 or 1, from rest on over all steps.

    Where nothing wants a gradient, and nobody listens to the neuron's own calls, one potential is kept and written to
    in place: the same bits in half the time.
    """
    learns = torch.is_grad_enabled() and (currents.requires_grad or any(p.requires_grad for p in neuron.parameters()))
    if learns or neuron._forward_hooks or neuron._forward_pre_hooks:
        membrane, steps = None, []
        for current in currents:
            spikes, membrane = neuron(current, membrane)
            steps.append(spikes)
        return torch.stack(steps)
    decay = neuron.decay if isinstance(neuron, LIF) else 1 - torch.sigmoid(neuron.leak.detach())
    fired, potential = torch.empty_like(currents), torch.zeros_like(currents[0])
    for current, spikes in zip(currents, fired, strict=True):
        potential.mul_(decay).add_(current)
        torch.ge(potential, neuron.threshold, out=spikes)
        if neuron.reset == "soft":
            potential.sub_(spikes, alpha=neuron.threshold)
        else:
            potential.addcmul_(potential, spikes, value=-1)
    return fired


def spike_and_reset(
    potential: Float[Tensor, "*shape"], threshold: float, reset: str, surrogate: Surrogate, detach_reset: bool
) -> Step:
    """Return the spikes of a potential, and what the reset leaves of it."""
    spikes = fire(potential - threshold, surrogate)
    fired = spikes.detach() if detach_reset else spikes
    return spikes, potential - fired * (threshold if reset == "soft" else potential)


@no_type_check  # a compiler follows an autograd function into its own code, not into a check around it
class _StraightThrough(torch.autograd.Function):
    """A value that a potential led to, with `share` as its derivative where the potential is inside 0 to `levels`."""

    @staticmethod
    def forward(value: Tensor, potential: Tensor, levels: int, share: float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, float], output: Tensor) -> None:
        _, potential, levels, ctx.share = inputs
        ctx.save_for_backward((potential > 0) & (potential < levels))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return None, gradients[0] * inside * ctx.share, None, None


def _check_decay(name: str, decay: float) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"{name} must lie between 0 (nothing is kept) and 1 (nothing leaks), got {decay}")


def _check_spiking(threshold: float, reset: str) -> None:
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset must be 'hard' (to 0) or 'soft' (by the threshold), got {reset!r}")

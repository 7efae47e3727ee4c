"""Neurons against a loop over single numbers and against snnTorch; surrogates against what they differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import snntorch
import torch
from snntorch import surrogate as snntorch_surrogates
from torch import Tensor

pytest.importorskip("spconv.pytorch")  # the package of the layers asks for it

from pointcloud.nn import LIF, PLIF, IntegerLIF, arctangent, fire, rectangular, sigmoid  # noqa: E402
from pointcloud.nn.neurons import run_steps  # noqa: E402

STEPS, NEURONS = 30, 40


def currents(seed: int, scale: float = 1.0) -> Tensor:
    """Return currents (steps neurons) around a third of the threshold."""
    drawn = torch.randn(STEPS, NEURONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * (drawn + 0.3)


def run(neuron: torch.nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return spikes and potentials of all steps."""
    membrane, spikes, membranes = None, [], []
    for current in given:
        fired, membrane = neuron(current, membrane)
        spikes.append(fired)
        membranes.append(membrane)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("threshold", [1.0, 0.4])
def test_lif_equals_a_loop_over_single_numbers(reset: str, threshold: float) -> None:
    given = currents(0)
    spikes, membranes = run(LIF(0.75, threshold, reset), given)
    for neuron in range(NEURONS):
        potential = 0.0
        for step in range(STEPS):
            potential = 0.75 * potential + given[step, neuron].item()
            fired = potential >= threshold
            assert spikes[step, neuron] == float(fired)
            if fired:
                potential = 0.0 if reset == "hard" else potential - threshold
            assert membranes[step, neuron].item() == pytest.approx(potential, abs=1e-14)
    assert 0.1 < spikes.mean() < 0.6


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("reset", "mechanism"), [("hard", "zero"), ("soft", "subtract")])
def test_neurons_and_gradients_equal_snntorch(reset: str, mechanism: str, learns: bool) -> None:
    # So small that a soft reset leaves less than the threshold, of which theirs takes away twice; and never just at it.
    given, weights = currents(1).clamp(max=0.99), currents(2)
    neuron = PLIF(0.9, reset=reset).double() if learns else LIF(0.9, reset=reset)
    decay = 1 - torch.sigmoid(neuron.leak.detach()) if learns else torch.tensor(0.9, dtype=torch.float64)
    theirs = snntorch.Leaky(
        decay, 1.0, snntorch_surrogates.atan(2.0), learn_beta=learns, reset_mechanism=mechanism, reset_delay=False
    ).double()
    results = []
    for kind in ("ours", "theirs"):
        x = given.clone().requires_grad_()
        if kind == "ours":
            spikes, membranes = run(neuron, x)
        else:
            theirs.reset_mem()
            pairs = [theirs(current) for current in x]
            spikes, membranes = (torch.stack(each) for each in zip(*pairs, strict=True))
        (spikes * weights).sum().backward()
        results.append((spikes, membranes, x.grad))
    for ours, expected, limit in zip(*results, (1e-12, 1e-12, 1e-6), strict=True):  # their gradients are in float32
        assert (ours - expected).abs().max() < limit * max(1, expected.abs().max())
    assert 0.1 < results[0][0].mean() < 0.9
    if learns:  # by the chain rule, since theirs learns the decay itself
        slope = -(1 - decay) * decay
        assert neuron.leak.grad.item() == pytest.approx((theirs.beta.grad * slope).item(), rel=1e-5)


def test_a_detached_reset_lets_no_gradient_through() -> None:
    x = torch.tensor([1.5], requires_grad=True)
    _, membrane = LIF(reset="soft", detach_reset=True)(x)
    membrane.backward()
    assert x.grad.item() == 1.0 and membrane.item() == 0.5
    y = torch.tensor([1.5], requires_grad=True)
    LIF(reset="soft")(y)[1].backward()
    assert y.grad.item() == pytest.approx(1 - 1 / (1 + (math.pi / 2) ** 2))


@pytest.mark.parametrize(
    ("surrogate", "smooth"),
    [
        (arctangent, lambda x: torch.arctan(math.pi * x) / math.pi),
        (rectangular, lambda x: x.clamp(-0.5, 0.5)),
        (sigmoid, lambda x: torch.sigmoid(4 * x)),
    ],
)
def test_surrogates_are_derivatives_of_a_step_made_smooth(
    surrogate: Callable[[Tensor], Tensor], smooth: Callable[[Tensor], Tensor]
) -> None:
    x = torch.linspace(-3, 3, 400, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(smooth(x).sum(), x)
    spikes = fire(x, surrogate)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert (gradient - expected).abs().max() < 1e-12
    assert torch.equal(spikes, (x >= 0).double())
    far = smooth(torch.tensor([-1e9, 1e9], dtype=torch.float64))
    assert (far[1] - far[0]).item() == pytest.approx(1.0)  # as high as the step


def test_spikes_come_at_the_threshold() -> None:
    spikes, membrane = LIF(threshold=0.5)(torch.tensor([0.5, math.nextafter(0.5, 0)], dtype=torch.float64))
    assert spikes.tolist() == [1.0, 0.0] and membrane[0] == 0
    assert IntegerLIF(4)(torch.tensor([0.49, 0.5, 1.5, 2.5, 3.5, 4.6, -3.0]))[0].tolist() == [0, 1, 2, 3, 4, 4, 0]


@pytest.mark.parametrize("levels", [1, 4, 7])
def test_integers_are_the_sum_of_their_spikes_and_so_are_gradients(levels: int) -> None:
    neuron = IntegerLIF(levels, 0.8)
    given = torch.cat([currents(3, levels), torch.arange(-1, 2 * NEURONS - 1).view(2, -1) / 2])  # and exact halves
    weights = currents(4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        results = []
        for unrolled in (False, True):
            x, membrane, total = given.clone().to(dtype).requires_grad_(), None, 0
            counts = []
            for step, current in enumerate(x):
                if unrolled:
                    spikes, membrane = neuron.spikes(current, membrane)
                    assert spikes.shape == (levels, NEURONS) and ((spikes == 0) | (spikes == 1)).all()
                    fired = spikes.sum(0)
                else:
                    fired, membrane = neuron(current, membrane)
                total = total + (fired * weights[step % STEPS].to(dtype)).sum()
                counts.append(fired)
            (total + membrane.sum()).backward()
            results.append((torch.stack(counts), membrane, x.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
        limit = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
        assert (results[0][2] - results[1][2]).abs().max() < limit
        assert set(results[0][0].unique().tolist()) == set(range(levels + 1))


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("kind", [LIF, PLIF])
def test_all_steps_in_place_are_the_same_bits(kind: type[LIF | PLIF], reset: Literal["hard", "soft"]) -> None:
    neuron, given = kind(0.7, 0.8, reset), currents(5, 4).float()
    learns = run_steps(neuron, given.clone().requires_grad_())
    heard: list[Tensor] = []
    with torch.no_grad():
        in_place = run_steps(neuron, given)
        neuron.register_forward_hook(lambda module, inputs, output: heard.append(output[0]))
        listened = run_steps(neuron, given)
    assert learns.requires_grad and torch.equal(learns, in_place) and torch.equal(torch.stack(heard), in_place)
    assert torch.equal(listened, in_place) and 0 < in_place.mean() < 1


def test_a_bundle_is_the_same_integers_in_bytes() -> None:
    neuron = IntegerLIF(4, 0.8)
    given = torch.cat([currents(3, 4), torch.arange(-1, 2 * NEURONS - 1).view(2, -1) / 2])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        membrane = None
        for current in given.to(dtype):
            counts, after = neuron(current, membrane)
            bundled, same = neuron.bundle(current, membrane)
            assert bundled.dtype == torch.uint8 and torch.equal(bundled.to(dtype), counts) and torch.equal(same, after)
            assert neuron(current, membrane, keep=False)[1] is None is neuron.bundle(current, membrane, keep=False)[1]
            membrane = after
    with pytest.raises(ValueError, match="holds up to 255 spikes, these neurons send up to 300"):
        IntegerLIF(300).bundle(given)


def test_the_integers_gradient_passes_straight_inside_and_stops_outside() -> None:
    x = torch.tensor([-1.0, 0.0, 0.2, 3.9, 4.0, 9.0], requires_grad=True)
    IntegerLIF(4)(x)[0].sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0, 0]


def test_nothing_is_kept_in_a_neuron() -> None:
    given = currents(5)
    for neuron in (LIF(), PLIF().double(), IntegerLIF()):
        first, second = run(neuron, given), run(neuron, given)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        assert not list(neuron.buffers()) and len(list(neuron.parameters())) == isinstance(neuron, PLIF)


def test_settings_out_of_range_are_named() -> None:
    for make, message in (
        (lambda: LIF(1.5), "decay must lie between 0 .* and 1 .*, got 1.5"),
        (lambda: PLIF(1.0), "decay must lie strictly between 0 and 1 .*, got 1.0"),
        (lambda: LIF(threshold=0.0), "threshold must be above 0, got 0"),
        (lambda: IntegerLIF(0), "levels must be 1 or more, got 0"),
        (lambda: IntegerLIF(decay=-0.1), "decay must lie between 0 .*, got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_reset_is_named() -> None:
    with pytest.raises(ValueError, match="reset must be 'hard' .* or 'soft' .*, got 'zero'"):
        PLIF(reset="zero")

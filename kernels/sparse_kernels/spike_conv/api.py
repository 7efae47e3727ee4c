"""Check the arguments, choose between events and the dense product, call it; gradients are those of sparse_conv."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparse_kernels._backends import choose, load_backend
from sparse_kernels._checks import DTYPES, check_devices, check_types, described, refuse_tangents
from sparse_kernels.sparse_conv.api import check_convolution, chosen_backend, convolve, convolve_weight
from sparse_kernels.sparse_conv.kernel_map import KernelMap
from sparse_kernels.spike_conv.choice import break_even

MOST_CHANNELS = 65_534  # they are listed in 16 bits
COUNTED_ROWS = 64
BYTES = torch.bool, torch.uint8


def spike_conv(
    spikes: Tensor,
    weight: Float[Tensor, "c_out *kernel c_in"],
    kernel_map: KernelMap,
    bias: Float[Tensor, " c_out"] | None = None,
    *,
    backend: str | None = None,
) -> Float[Tensor, "outputs c_out"]:
    """Return sparse_conv of spikes: for each pair of rows the weights of the channels that fired are added.

    `spikes` are (inputs c_in), 0 or 1 in the type of the weights or bool, or uint8: how many spikes arrive together; or
    (steps inputs c_in), several steps of one neuron whose outputs are added up, in one pass over the pairs. The work
    follows the share of channels that fired; above the share at which that stops being quicker (`break_even`, measured
    once for a shape), and in a graph of torch.compile, the steps are added first and go through sparse_conv. Backends,
    always event-driven: cpu (C++), triton, reference (torch). With one of them named, the same bits come out for every
    number of threads; else the measured share decides between two orders of addition. Gradients are sparse_conv's.
    ValueError on shapes or types that do not fit. Other spikes than these are refused by cpu and reference, and not
    looked for by Triton and sparse_conv. NotImplementedError in forward-mode differentiation.
    """
    spikes = _check(spikes, weight, kernel_map, bias)
    refuse_tangents("spike_conv", spikes, weight)
    slots = weight.flatten(1, -2).permute(1, 2, 0)
    out = _events(spikes, slots, kernel_map, backend)
    if out is None:
        counts = spikes.sum(0, dtype=weight.dtype) if len(spikes) > 1 else spikes[0].to(weight.dtype)
        out = convolve(counts, slots, kernel_map.forward, kernel_map.backward, chosen_backend(counts))
    return out if bias is None else out + bias


def _events(spikes: Tensor, slots: Tensor, kernel_map: KernelMap, backend: str | None) -> Tensor | None:
    """Return the event-driven result, or None where nobody asked for it and the dense product is quicker."""
    if backend is None:
        backend = "triton" if spikes.is_cuda else "cpu"
        # A graph must not depend on the firing rate of one call.
        if (
            spikes.is_meta
            or torch.compiler.is_compiling()
            or load_backend("spike_conv", backend).can_run(spikes, slots)
        ):
            return None
        if _share(spikes) > break_even(*slots.shape, slots.dtype, str(spikes.device), torch.get_num_threads()):
            return None
    chosen = choose("spike_conv", "event-driven convolution runs", backend, spikes, slots).__name__
    return accumulate(spikes, slots, kernel_map.forward, kernel_map.backward, chosen.rpartition(".")[2])


@torch.no_grad()
def _share(spikes: Shaped[Tensor, "steps inputs c_in"]) -> float:
    """Return which share of the channels fired, of some rows: to count all would take as long as to list them."""
    some = spikes[:, :: max(1, spikes.shape[1] // COUNTED_ROWS)]
    return some.any(0).float().mean().item() if some.numel() else 0.0


def _check(spikes: Any, weight: Any, kernel_map: Any, bias: Any) -> Shaped[Tensor, "steps inputs c_in"]:
    """Return the spikes as steps, bool, uint8 or in the type of the weights."""
    if not isinstance(spikes, Tensor) or spikes.ndim not in (2, 3) or (spikes.ndim == 3 and not len(spikes)):
        raise ValueError(f"spikes must be (rows, channels) or (steps, rows, channels), got {described(spikes)}")
    rows = {} if spikes.dtype in BYTES else {"spikes": spikes}
    check_types((*DTYPES, torch.float64), **rows, weight=weight)
    check_devices(spikes=spikes, weight=weight)
    spikes = spikes if spikes.ndim == 3 else spikes[None]
    check_convolution(spikes[0], weight, kernel_map, bias, types=spikes.dtype not in BYTES)
    if spikes.shape[2] > MOST_CHANNELS:
        raise ValueError(f"spikes must have at most {MOST_CHANNELS} channels, got {spikes.shape[2]}")
    return spikes


@torch.library.custom_op(
    "sparse_kernels::spike_conv",
    mutates_args=(),
    schema="(Tensor spikes, Tensor weight, Tensor forward, Tensor backward, str backend) -> Tensor",
)
def accumulate(spikes: Tensor, weight: Tensor, forward: Tensor, backward: Tensor, backend: str) -> Tensor:
    """The operator behind spike_conv, spikes with steps, weights as (slots c_in c_out)."""
    return load_backend("spike_conv", backend).accumulate(spikes, weight, forward)


@accumulate.register_fake
def _(spikes: Tensor, weight: Tensor, forward: Tensor, backward: Tensor, backend: str) -> Tensor:
    return weight.new_empty(forward.shape[1], weight.shape[2])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("spike_conv", gradient)
    spikes, weight, forward, backward = ctx.saved_tensors
    backend = chosen_backend(gradient)
    back = to_weight = None
    if ctx.needs_input_grad[0]:  # every step feeds the same sum
        back = convolve(gradient, weight.transpose(1, 2), backward, forward, backend).expand(spikes.shape[0], -1, -1)
    if ctx.needs_input_grad[1]:
        to_weight = convolve_weight(spikes.sum(0, dtype=weight.dtype), gradient, forward, backward, backend)
    return back, to_weight, None, None, None


accumulate.register_autograd(_backward, setup_context=_setup)

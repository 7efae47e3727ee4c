"""Triton where it is installed; files with kernels can be imported without it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_kernels._checks import DTYPES

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

LOG2E = math.log2(math.e)  # exponentials and logarithms are to base 2 inside
LOG2E_INSIDE = LOG2E if tl is None else tl.constexpr(LOG2E)  # the form in which kernels read it
MAX_HEAD_DIM = 256
MOST_PROGRAMS = 65_535  # on the second and the third axis of a grid
BARRIERS = 1024  # bytes of shared memory beside the tiles
LEAST_CAPABILITY = (8, 0)  # below, Triton multiplies matrices without tensor cores


def jit(function: Callable) -> Any:
    """Return the function as a Triton kernel, or unchanged where there is no Triton."""
    # Unwrapped, since tests check the shapes of all functions' arguments and Triton compiles what it is given.
    return function if triton is None else triton.jit(inspect.unwrap(function))


def reason_against(kernel: Any, tensors: dict[str, Tensor]) -> str | None:
    """Return why `kernel` cannot take these tensors of rows, or None."""
    if triton is None:
        return "triton is not installed (pip install triton)"
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            return f"the Triton kernel takes float32, bfloat16 or float16, {name} is {tensor.dtype}"
        if tensor.shape[-1] > MAX_HEAD_DIM:
            return f"the Triton kernel takes a head_dim of at most {MAX_HEAD_DIM}, {name} has {tensor.shape[-1]}"
        if isinstance(kernel, triton.JITFunction) and not tensor.is_cuda:  # else it is interpreted
            return f"the Triton kernel needs CUDA tensors, {name} is on {tensor.device}"
    return start_reason(kernel, next(iter(tensors.values())))


def start_reason(kernel: Any, tensor: Tensor) -> str | None:
    """Return why the device of a tensor cannot run `kernel`, or None: also where this is interpreted, or no CUDA."""
    compiled = isinstance(kernel, triton.JITFunction) and tensor.is_cuda
    return _settled_reason(tensor.device.index) if compiled else None


@torch.compiler.assume_constant_result  # a graph takes the answer along, and does not break where it is found
def _settled_reason(index: int) -> str | None:
    return device_reason(index)


@functools.cache
def device_reason(index: int) -> str | None:
    """Return why a CUDA device cannot run the kernels, or None; starts Triton there."""
    if not torch.cuda.is_available():  # tensors without data may be said to lie on a device that is not here
        return None
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA's GPUs"
    try:
        found = torch.cuda.get_device_capability(index)
        if found < LEAST_CAPABILITY:
            return f"the Triton kernels need compute capability 8.0, this device has {found[0]}.{found[1]}"
        with torch.cuda.device(index):
            triton.runtime.driver.active.get_current_target()  # builds Triton's helper, with a C compiler
    except Exception as error:  # compiler, linker and loader each raise their own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"Triton cannot start, for which it needs a C compiler and Python's headers: {said}"
    return None


def grid_reason(**programs: int) -> str | None:
    """Return why the second or third axis of a grid cannot have so many programs, or None; names say what they are."""
    for name, count in programs.items():
        if count > MOST_PROGRAMS:
            return f"the Triton kernel takes at most {MOST_PROGRAMS:,} {name.replace('_', ' ')}, given {count:,}"
    return None


def compiler_options(num_warps: int, num_stages: int = 2) -> dict[str, int | bool]:
    """Return compiler options; fused multiply-add is asked for by name because Triton's default for it changes."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def device_limits(x: Tensor) -> tuple[int, bool]:
    """Return the shared memory of one thread block in bytes and whether MMA reads from it (Hopper, Blackwell)."""
    if not x.is_cuda:  # interpreter
        return 163 * 1024, False
    device = torch.cuda.get_device_properties(x.device)
    return device.shared_memory_per_block_optin, device.major in (9, 10)


def shared_strides(tensor: Tensor | None, count: int = 2) -> tuple[int, ...]:
    """Return the first `count` strides, 0 where one entry serves all batches or heads."""
    if tensor is None:
        return (0,) * count
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))[:count]

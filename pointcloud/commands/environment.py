"""What this machine has for point clouds, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

PACKAGES = ("visual-accel", "torch", "open3d", "laspy", "lazrs", "torch-scatter")
WHEELS = ("CPU-only", "CUDA")
# What to do without spconv, and without its kernels for CUDA.
SPCONV = 'pip install "visual-accel[points]" (wheels for Linux on x86-64, Python 3.11 to 3.13)'
CUDA_WHEEL = "pip uninstall spconv cumm, then pip install spconv-cu126"


def environment() -> list[tuple[str, str]]:
    """Return rows (what, here): devices, versions, and which sparse convolution runs on each device."""
    rows = [("device", f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")]
    rows += [("device", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
    rows += [(package, _version(package)) for package in PACKAGES]
    wheel = spconv_wheel()
    names = importlib.metadata.packages_distributions().get("spconv", [])
    rows += [(name, f"{_version(name)}, {wheel}") for name in names] or [("spconv", wheel)]
    rows.append(("sparse convolution on cpu", cpu_convolution(wheel)))
    if torch.cuda.is_available():
        rows.append(("sparse convolution on cuda", cuda_convolution(wheel)))
    return rows


def spconv_wheel() -> str:
    """Return which of `WHEELS` is installed, else why there is none."""
    if importlib.util.find_spec("spconv") is None:
        return "not installed"
    try:
        from spconv.cppconstants import CPU_ONLY_BUILD
    except ImportError as error:
        return f"cannot be imported: {error}"
    return "CPU-only" if CPU_ONLY_BUILD else "CUDA"


def cpu_convolution(wheel: str) -> str:
    """Return what runs on the CPU: our C++ kernel, or its slow reference and why; without spconv nothing does."""
    from sparse_kernels._extension import instruction_set
    from sparse_kernels.sparse_conv import cpu

    if wheel == "not installed":
        return f"none: {SPCONV}"
    if wheel not in WHEELS:
        return "none: pip uninstall any spconv and cumm, then pip install spconv"
    reason = cpu.can_run(torch.zeros(1, 1))
    return f"our C++ kernel, {instruction_set(torch.float32)}" if reason is None else f"slow reference: {reason}"


def cuda_convolution(wheel: str) -> str:
    """Return what runs on CUDA, spconv's own kernels, or how to get them."""
    if wheel == "CUDA":
        return "spconv's own kernels"
    return f"none: {CUDA_WHEEL}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""Load the C++ kernels."""

from __future__ import annotations

import functools
import importlib
import itertools
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from sparse_kernels._build import build, find_compilers, find_libraries


@functools.cache
def load() -> str | None:
    """Load the kernels, building them if this machine has none yet; return the reason when that fails."""
    compilers = find_compilers()
    reasons = (
        []
        if compilers
        else ["no C++ compiler was found; install one (Debian: apt-get install g++) to get the fast kernels"]
    )
    for origin in itertools.chain(find_libraries(), compilers):
        reason = _load(origin)
        if reason is None:
            break
        reasons.append(reason)
    else:
        return "; ".join(reasons)
    # Fakes stand beside their operators, and can be registered only now that these exist.
    for file in sorted(Path(__file__).parent.glob("*/fakes.py")):
        importlib.import_module(f"sparse_kernels.{file.parent.name}.fakes")
    return None


def _load(origin: Path | str) -> str | None:
    """Load a library that is there, or what a compiler makes; return why that failed."""
    try:
        torch.ops.load_library(str(build(origin) if isinstance(origin, str) else origin))
    except subprocess.CalledProcessError as error:
        said = _telling_line(error.stderr or str(error))
        return f"building the C++ kernels with {origin} failed: {said} (GCC 11 and clang 12 can)"
    except OSError as error:
        said = _telling_line(str(error.__cause__ or error))  # torch hides the linker's words behind a path
        return f"building or loading the C++ kernels failed: {said}"
    return None


def _telling_line(text: str) -> str:
    """Return the first line with an error: the last one of a compiler counts them or says that it stopped."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "it said nothing")


def reason_against(**tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these tensors, or None; builds them at the first call."""
    for name, x in tensors.items():
        if x.device.type != "cpu":
            return f"{name} is on {x.device}, not on the CPU"
    return load()


def at_hand(x: Tensor) -> bool:
    """Return whether loaded kernels take this tensor: what only saves time builds nothing and stays out of graphs."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return hasattr(torch.ops.sparse_kernels, "pack_mask_cpu")


def instruction_set(dtype: torch.dtype) -> str | None:
    """Return the instruction set that the CPU kernel uses for `dtype` or int8, or None where it is not available."""
    if load() is not None:
        return None
    element = {torch.bfloat16: "bfloat16", torch.int8: "int8"}.get(dtype, "float32")
    return torch.ops.sparse_kernels.instruction_set(element) or None

"""The choice of a backend: the one asked for or an error, else the device's own or the reference with a warning."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from torch import Tensor

BACKENDS = ("cpu", "triton", "reference")


def choose_backend(package: str, work: str, backend: str | None, *tensors: Tensor) -> ModuleType:
    """Return the module of `package` whose `can_run(*tensors)` names no obstacle; `work` is what a warning calls it.

    ValueError when `backend` is not known or cannot run the call.
    """
    name = backend or ("triton" if tensors[0].is_cuda else "cpu")
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; accepted: {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{package}.{name}")
    reason = module.can_run(*tensors)
    if reason is None:
        return module
    if backend is not None:
        raise ValueError(f"backend {backend} cannot run this call: {reason}")
    # Level 4 is the user: the public functions are wrapped once by torch.no_grad.
    warnings.warn(f"{work} on the slow reference backend, since {name} cannot run: {reason}", stacklevel=4)
    return importlib.import_module(f"{package}.reference")

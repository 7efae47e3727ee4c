"""The choice of a backend: the one asked for or an error, else the device's own or the reference with a warning."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

BACKENDS = ("cpu", "triton", "reference")


def load_backend(package: str, name: str, accepted: tuple[str, ...] = BACKENDS) -> ModuleType:
    """Return one backend of an operator's package; ValueError unless it is among the accepted ones."""
    if name not in accepted:
        raise ValueError(f"unknown backend {name!r}; accepted: {', '.join(accepted)}")
    return importlib.import_module(f"sparse_kernels.{package}.{name}")


def choose(
    package: str, work: str, backend: str | None, *arguments: Any, accepted: tuple[str, ...] = BACKENDS, level: int = 4
) -> ModuleType:
    """Return the backend whose `can_run(*arguments)` names no obstacle; the first argument is a tensor.

    A warning calls the operator `work`; it stands `level` frames below its user: 4 under torch.no_grad, else 3.
    ValueError when `backend` is not known or cannot run the call.
    """
    name = backend or ("triton" if arguments[0].is_cuda else "cpu")
    module = load_backend(package, name, accepted)
    reason = module.can_run(*arguments)
    if reason is None:
        return module
    if backend is not None:
        raise ValueError(f"backend {backend} cannot run this call: {reason}")
    warnings.warn(f"{work} on the slow reference backend, since {name} cannot run: {reason}", stacklevel=level)
    return load_backend(package, "reference", accepted)

"""What is known of a generation before it runs: what was asked for, and of which machine and versions."""

from __future__ import annotations

import dataclasses
import math
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch

from accel.methods.method import Method
from accel.methods.registry import name_of
from accel.workbench.loading import LoadedPipeline
from accel.workbench.their_caches import Cache
from accel.workbench.their_caches import name_of as name_of_cache
from sparse_kernels import backend_reasons


def facts(
    loaded: LoadedPipeline, method: Method | None, call: dict[str, Any], seed: int, cache: Cache | None = None
) -> dict[str, Any]:
    """Return what was asked for, and of which machine and versions; a method of None is dense."""
    size = {"frames": call["num_frames"], "height": call["height"], "width": call["width"]}
    return {
        "model": loaded.name,
        "method": name_of(method),
        "method_options": _options(method),
        "cache": name_of_cache(cache),
        "cache_options": _cache_options(cache),
        "prompt": call["prompt"],
        "seed": seed,
        "tokens": loaded.tokens(**size),
        **size,
        "steps": call["num_inference_steps"],
        "guidance_scale": call.get("guidance_scale"),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": device_name(loaded.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sparse_backend": None if method is None else sparse_backend(loaded.device),
    }


def device_name(device: torch.device) -> str:
    """Return the name of the processor or graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def sparse_backend(device: torch.device) -> str:
    """Return the backend that block_sparse_attention chooses on a device."""
    best = "triton" if device.type == "cuda" else "cpu"
    return best if backend_reasons(str(device))[best] is None else "reference"


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with "inf" and "nan" as words: JSON knows no infinity, which is the PSNR of identical videos."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _cache_options(cache: Cache | None) -> dict[str, Any]:
    """Return a cache's options; what it does not print of itself (routers) stands in files."""
    shown = [] if cache is None else [field for field in dataclasses.fields(cache) if field.repr]
    values: dict[str, Any] = {field.name: getattr(cache, field.name) for field in shown}
    return {name: dataclasses.asdict(value) if hasattr(value, "save") else value for name, value in values.items()}


def _options(method: Any) -> dict[str, Any]:
    """Return a method's options; one that it builds on is a dictionary with its name and options."""
    if not dataclasses.is_dataclass(method):
        return {}
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.repr}
    return {
        name: {"name": name_of(value), **_options(value)} if hasattr(value, "plan") else value  # type: ignore[arg-type]
        for name, value in options.items()
    }

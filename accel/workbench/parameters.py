"""What the call of a pipeline takes."""

from __future__ import annotations

import inspect
from typing import Any

from accel.workbench.modular import VideoCall


def call_defaults(pipeline: Any) -> dict[str, Any]:
    """Return the names of a pipeline's arguments and their defaults."""
    if isinstance(pipeline, VideoCall):
        return pipeline.parameters
    return {name: each.default for name, each in inspect.signature(pipeline.__call__).parameters.items()}


def class_of(pipeline: Any) -> str:
    """Return the name of a pipeline's class in diffusers."""
    return type(pipeline.pipeline if isinstance(pipeline, VideoCall) else pipeline).__name__

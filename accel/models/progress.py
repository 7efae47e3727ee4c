"""The hook on the transformer's root that knows step, guidance branch and latent grid of every call."""

from __future__ import annotations

import weakref
from typing import Any

from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from torch import Tensor, nn

from accel.attention.call import Progress
from accel.models.adapters import Adapter
from accel.models.session import Session

HOOK = "accel_progress"


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept here; the session keeps it."""


class ProgressHook(ModelHook):
    """Tells the session where the denoising loop is, before each call of the transformer.

    Step and branch come from the pipeline's cache context where it gives them, else from the position of the
    timestep in the pipeline's schedule, and from the order of calls within one step.
    """

    _is_stateful = True

    def __init__(self, session: Session, adapter: Adapter, pipeline: Any):
        super().__init__()
        self.session, self.adapter = session, adapter
        self.pipeline = weakref.ref(pipeline) if pipeline is not None else lambda: None
        # Diffusers hands the cache context to state managers only.
        self.context = StateManager(_NoState)  # type: ignore[arg-type]
        self._timestep: float | None = None
        self._calls_in_step = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Read grid and progress from the arguments, pass them on unchanged."""
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        self.session.begin_call(self.adapter.geometry(module, args, kwargs), self._progress(timestep))
        return args, kwargs

    def reset_state(self, module: nn.Module) -> None:
        """Called by diffusers when a generation has ended."""
        self.context.reset()
        self._timestep = None
        self.session.end_generation()

    def _progress(self, timestep: Any) -> Progress | None:
        value = float(timestep.max()) if isinstance(timestep, Tensor) else None
        self._calls_in_step = self._calls_in_step + 1 if value is not None and value == self._timestep else 0
        self._timestep = value
        context = self.context._context
        branch = context.name if context is not None else f"call {self._calls_in_step}"
        if context is not None and context.step_index is not None and context.num_inference_steps:
            return Progress(context.step_index, context.num_inference_steps, branch)
        position = self._position(value)
        return None if position is None else Progress(*position, branch)

    def _position(self, timestep: float | None) -> tuple[int, int] | None:
        """Return (step, steps) of a timestep in the pipeline's schedule."""
        pipeline = self.pipeline()
        timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
        if timestep is None or timesteps is None or len(timesteps) == 0:
            return None
        distance = (timesteps.float().cpu() - timestep).abs()
        step = int(distance.argmin())
        # Half-precision models receive rounded timesteps.
        return (step, len(timesteps)) if float(distance[step]) <= 1e-2 * max(1.0, abs(timestep)) else None


def install_hook(transformer: nn.Module, hook: ProgressHook) -> None:
    """Register the hook on the transformer, which must not carry one yet."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(hook, HOOK)
    registry.invalidate_child_registries_cache()


def remove_hook(transformer: nn.Module) -> None:
    """Take the hook off again."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.remove_hook(HOOK, recurse=False)
    registry.invalidate_child_registries_cache()

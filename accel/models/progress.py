"""The hook on the transformer's root that knows step, guidance branch and latent grid of every call."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks.hooks import (
    BaseState,
    CacheContext,
    HookFunctionReference,
    HookRegistry,
    ModelHook,
    StateManager,
)
from torch import Tensor, nn

from accel.attention.call import Geometry, Progress
from accel.models.adapters import adapter_of
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument
from accel.models.compiling import outside_graphs
from accel.models.denoising import Denoising
from accel.models.operator import note_in_graph, number_of
from accel.models.session import Session

HOOK = "accel_progress"
HALF = torch.bfloat16, torch.float16


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept here; the session keeps it."""


class _ThreadContext(StateManager):
    """Diffusers' cache context of each thread: pipelines that share a transformer do not see each other's."""

    def __init__(self) -> None:
        self._threads = threading.local()
        super().__init__(_NoState)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the threads."""
        return _ThreadContext, ()

    @property
    def _context(self) -> CacheContext | None:
        return getattr(self._threads, "context", None)

    @_context.setter
    def _context(self, context: CacheContext | None) -> None:
        self._threads.context = context


class ProgressHook(ModelHook):
    """Tells the session where the denoising loop is, before each call of the transformer.

    Step and branch come from the pipeline's cache context where it gives them, else from the position of the
    timestep in the pipeline's schedule (or, where the model is given other numbers, from the order in which they
    come), and from the order of calls within one step.
    """

    _is_stateful = True

    def __init__(self, session: Session, adapter: Adapter, pipeline: Any):
        super().__init__()
        self.session, self.adapter = session, adapter
        self._pipeline = _weakly(pipeline)
        self._latest_scheduler = _weakly(getattr(pipeline, "scheduler", None))
        self._number = number_of(self)
        self.others: list[Denoising] = []  # of the pipeline's other transformers
        # Diffusers hands the cache context to state managers only.
        self.context = _ThreadContext()
        self._order = threading.local()  # schedule, timestep, step and number of the latest call

    @property
    def pipeline(self) -> Any:
        """The pipeline whose schedule counts, None where it is unknown or gone."""
        return self._pipeline()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without threads and pipeline, and with the adapter's class: it holds functions without a name."""
        left_out = {"_pipeline": None, "_latest_scheduler": None, "_order": None, "_number": None}
        left_out |= {"adapter": self.adapter.classes[0]}
        return {**self.__dict__, **left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_order": threading.local(), "adapter": adapter_of(state["adapter"])}
        self._number = number_of(self)
        self._pipeline = self._latest_scheduler = _weakly(None)

    def __deepcopy__(self, memo: dict[int, Any]) -> ProgressHook:
        """Return a hook for a copied transformer: of the copied pipeline, or of the same one."""
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        pipeline = memo.get(id(self.pipeline), self.pipeline)
        copied._pipeline = _weakly(pipeline)
        return copied

    def note(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Read grid and progress from the arguments of a call that is about to start; return others to start with."""
        name = self.adapter.timestep
        if not (torch.compiler.is_compiling() and isinstance(kwargs.get(name), Tensor)):
            self._read(module, args, kwargs)
            return None
        geometry = self.adapter.geometry(module, args, kwargs)
        if geometry is None or torch.is_grad_enabled():
            self._read(module, args, kwargs)
            return None
        grid = [*geometry.grid, geometry.before, geometry.after]
        return args, {**kwargs, name: note_in_graph(kwargs[name], self._number, grid, geometry.rest)}

    @outside_graphs
    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = argument(module, args, kwargs, self.adapter.timestep)
        self.note_eagerly(timestep, self.adapter.geometry(module, args, kwargs))

    def note_eagerly(self, timestep: Any, geometry: Geometry | None) -> None:
        """Tell the session where the call that starts is."""
        schedule: Tensor | None = getattr(self._scheduler, "timesteps", None)  # a new tensor in every generation
        progress, is_index = self._progress(timestep, schedule)
        untouched = getattr(self._scheduler, "step_index", 0) is None  # since its timesteps were set
        begins = untouched and progress is not None and progress.step == self._first_step
        self.session.denoising.begin_call(geometry, progress, schedule, repeats=is_index, begins=begins)
        for other in self.others:
            other.drop_where_done(progress)

    def listen(self, module: nn.Module) -> ProgressHook:
        """Listen to the module's calls.

        Not by wrapping `forward`, as diffusers does: offloading puts back the one it found, whoever wrapped it since.
        """
        self._listening = module.register_forward_pre_hook(self.note, with_kwargs=True)
        return self

    def stop_listening(self) -> None:
        """Hear no more calls."""
        self._listening.remove()

    def reset_state(self, module: nn.Module) -> None:
        """Called by diffusers when a generation has ended."""
        self.context.reset()
        self._order.call = None
        self.session.denoising.end_generation()

    @property
    def _scheduler(self) -> Any:
        """The pipeline's own; that of one which is gone is with the one that took its parts over (`from_pipe`)."""
        if self.pipeline is not None:
            self._latest_scheduler = _weakly(getattr(self.pipeline, "scheduler", None))
        return self._latest_scheduler()

    @property
    def _first_step(self) -> int:
        return getattr(self._scheduler, "begin_index", None) or 0

    def _progress(self, timestep: Any, schedule: Tensor | None) -> tuple[Progress | None, bool]:
        """Return where the call stands, and whether its step is the loop's own index, for which nothing waits."""
        context = self.context._context
        if context is not None and context.step_index is not None and context.num_inference_steps:
            return Progress(context.step_index, context.num_inference_steps, context.name), True
        value = float(self.adapter.noisiest(timestep)) if isinstance(timestep, Tensor) else None
        step = None if value is None or schedule is None else self._step(value, schedule, timestep.dtype)
        before, self._order.call = getattr(self._order, "call", None), (schedule, value, step, 0)
        if before is not None and value is not None and before[0] is schedule and before[1:3] == (value, step):
            self._order.call = schedule, value, step, before[3] + 1
        branch = context.name if context is not None else f"call {self._order.call[3]}"
        if step is None or schedule is None:
            return None, False
        return Progress(step, len(schedule), branch, first=self._first(step, schedule, before)), False

    def _first(self, step: int, schedule: Tensor, before: Any) -> int:
        """Return the first step of a schedule that runs: the one that came first, here or in another transformer.

        A schedule that goes on from the call `before` is that of another pipeline with the same transformer.
        """
        order = self._order
        if getattr(order, "begun", None) is not schedule:
            goes_on = before is not None and before[2] in (step - 1, step) and len(before[0]) == len(schedule)
            if not goes_on:
                others = (other.current for other in self.others)
                found = (each.progress.first for each in others if each.schedule is schedule and each.progress)
                order.first = next(found, step)
            order.begun = schedule
        order.first = min(order.first, step)
        return order.first

    def _step(self, value: float, schedule: Tensor, dtype: torch.dtype) -> int | None:
        """Return the step of a timestep by its value or, where the model is given others, by their order.

        Rounded, or at least as large as that of a picture beside the video, several steps may have one timestep: there
        the scheduler's own count tells.
        """
        order, slack = self._order, 0.0 if dtype.is_floating_point else 1.0
        if getattr(order, "schedule", None) is not schedule:
            order.schedule, order.values, order.seen = schedule, schedule.float().cpu(), []
            place = _nearest(value, order.values, slack)
            # Models that take sigmas, or timesteps in [0, 1], begin near the smallest timestep of the schedule.
            is_sigma = value <= 1 + slack and len(schedule) > 1
            order.by_value = place is not None and (place + 1 < len(schedule) or not is_sigma)
        counted, rounded = self._counted(len(schedule)), dtype in HALF or slack > 0
        if order.by_value:
            exact = (order.values == value).nonzero().flatten().tolist() if slack else []
            if len(exact) == 1:  # not every loop steps the pipeline's own scheduler
                return exact[0]
            trusted = rounded and counted is not None and _is_near(value, float(order.values[counted]), slack)
            return counted if trusted else _nearest(value, order.values, slack)
        if value not in order.seen:
            order.seen.append(value)
        step = order.seen.index(value) + self._first_step
        if counted is not None:  # a loop without `scheduler.step` counts nothing
            step = counted if rounded else max(step, counted)
        return step if step < len(schedule) else None

    def _counted(self, steps: int) -> int | None:
        """Return the scheduler's own count, None where it does not go on from the step before.

        Then it is that of another pipeline with the same transformer.
        """
        if not hasattr(self._scheduler, "step_index"):
            return None
        before = getattr(self._order, "call", None)
        latest = self._first_step if before is None or before[2] is None else before[2]
        counted = self._scheduler.step_index or self._first_step
        return counted if counted < steps and counted in (latest, latest + 1) else None


def _weakly(thing: Any) -> Callable[[], Any]:
    """Return what returns it for as long as others keep it, or always where it cannot be told."""
    try:
        return weakref.ref(thing)
    except TypeError:  # as of None, or of a namespace in place of a scheduler
        return lambda: thing


def _nearest(timestep: float, values: Tensor, slack: float) -> int | None:
    """Return the step whose timestep is the nearest, None where none is near."""
    if len(values) == 0:
        return None
    step = int((values - timestep).abs().argmin())
    return step if _is_near(timestep, float(values[step]), slack) else None


def _is_near(timestep: float, value: float, slack: float) -> bool:
    """Whether one is the other, perhaps rounded to half precision, or by `slack` to a whole number."""
    return abs(value - timestep) <= max(slack, 1e-2 * max(1.0, abs(timestep)))


def install_hook(transformer: nn.Module, hook: ProgressHook) -> None:
    """Put the hook on the transformer, which must not carry one yet.

    First in diffusers' registry and without wrapping `forward`: it only listens, and a transformer whose `forward` is a
    closure can be neither copied nor pickled.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.hooks[HOOK] = hook.listen(transformer)
    registry._hook_order.insert(0, HOOK)
    registry._fn_refs.insert(0, HookFunctionReference())
    registry.invalidate_child_registries_cache()


def installed_hook(transformer: nn.Module) -> ProgressHook | None:
    """Return the hook that a transformer carries, if it does."""
    registry: Any = getattr(transformer, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def remove_hook(transformer: nn.Module) -> None:
    """Take the hook off again."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    hook = installed_hook(transformer)
    if hook is not None:
        hook.stop_listening()
        del registry.hooks[HOOK]
        place = registry._hook_order.index(HOOK)
        del registry._hook_order[place], registry._fn_refs[place]
    registry.invalidate_child_registries_cache()

"""Models that diffusers has as modular pipelines alone, called as its other pipelines are."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ModularPipeline  # pyright: ignore[reportPrivateImportUsage]

from accel.errors import InputError

MODULAR_INDEX = "modular_model_index.json"
# The blocks of a class of pipelines that make a video of a text, and nothing else.
WORKFLOWS = {"MiniMaxH3ModularPipeline": "t2va"}


class VideoCall:
    """The modular pipeline of MiniMax-H3: of a call comes a video, and each of its steps is told.

    It is guidance-distilled: a step is one call of its transformer. Everything else is asked of the pipeline itself.
    """

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["pipeline"], name)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a call takes, with its defaults; the size is that of a picture of 16 : 9."""
        from diffusers.modular_pipelines.minimax_h3.modular_pipeline import resolve_canvas_size

        pipeline = self.pipeline
        edge, most = pipeline.config.canvas_short_edge, pipeline.config.canvas_max_pixels
        height, width = resolve_canvas_size(16, 9, pipeline.canvas_multiple, edge, most)
        return pipeline.default_call_parameters | {"height": height, "width": width}

    def __call__(
        self, *, generator: torch.Generator, output_type: str, callback_on_step_end: Callable[..., Any], **call: Any
    ) -> SimpleNamespace:
        """Return the `frames` of one video, or its latents; InputError on fewer steps than two."""
        if call["num_inference_steps"] < 2:
            raise InputError("steps is 1; this model counts the end of its schedule as one: it must be at least 2")
        wanted = "latents" if output_type == "latent" else "videos"
        kind = "np" if output_type == "latent" else output_type
        with self._telling(call["num_inference_steps"], callback_on_step_end):
            made = self.pipeline(**call, generator=generator, output_type=kind, output=wanted)
        return SimpleNamespace(frames=made)

    @contextmanager
    def _telling(self, steps: int, callback: Callable[..., Any]) -> Iterator[None]:
        """Call back after each call of the transformer, the last one being that of the last step."""
        done = 0

        def told(module: torch.nn.Module, arguments: tuple, output: tuple) -> None:
            nonlocal done
            timesteps = self.pipeline.scheduler.timesteps
            callback(self, steps - len(timesteps) + done, timesteps[done], {"latents": output[0]})
            done += 1

        hook = self.pipeline.transformer.register_forward_hook(told)
        try:
            yield
        finally:
            hook.remove()


def modular_class(source: str) -> str | None:
    """Return the class of the modular pipeline that a folder or id of the Hub holds, None where it holds none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`", UserWarning)  # diffusers gives it to the Hub
        try:
            index: Any = ModularPipeline.load_config(source)
        except OSError:
            return None
    return index.get("_class_name")


def load_modular(source: str, workflow: str, dtype: dict[str, torch.dtype]) -> VideoCall:
    """Load the blocks of a workflow from a folder or an id of the Hub; ValueError naming what is missing."""
    pipeline = ModularPipeline.from_pretrained(source, workflow=workflow)
    # An index names the place that it was saved to: what lies beside it comes from here, also where it was moved.
    own = {name: source for name in pipeline.pretrained_component_names if (Path(source) / name).is_dir()}
    place: dict[str, Any] = {"pretrained_model_name_or_path": own} if own else {}
    pipeline.load_components(dtype=dtype, **place)
    missing = [name for name in pipeline.pretrained_component_names if getattr(pipeline, name, None) is None]
    if missing:
        raise ValueError(f"its {', '.join(missing)} could not be loaded; what diffusers says of it stands above")
    return VideoCall(pipeline)


def call_defaults(pipeline: Any) -> dict[str, Any]:
    """Return the names of a pipeline's arguments and their defaults."""
    if isinstance(pipeline, VideoCall):
        return pipeline.parameters
    return {name: each.default for name, each in inspect.signature(pipeline.__call__).parameters.items()}


def class_of(pipeline: Any) -> str:
    """Return the name of a pipeline's class in diffusers."""
    return type(pipeline.pipeline if isinstance(pipeline, VideoCall) else pipeline).__name__

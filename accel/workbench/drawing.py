"""Which blocks a method visits: its static patterns on a grid, or what it planned in a real generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import Unpack

from accel.attach import enabled
from accel.attention.call import AttentionCall, Geometry, LayerMemory
from accel.attention.plan import Plan, Sparse
from accel.errors import InputError
from accel.files import replacing
from accel.methods.method import Method
from accel.methods.registry import name_of
from accel.workbench.generation import CallOptions, call_arguments, run
from accel.workbench.loading import LoadedPipeline

# Above that many tokens the mask of all pairs of a head is too large to draw.
PAIRS_AT_MOST = 8192


@dataclass(frozen=True)
class Drawing:
    """A plan of one or more heads, what it shows of them, and the head to look at."""

    title: str
    plan: Sparse
    head: int = 0

    def text(self, width: int = 64) -> str:
        """Return the blocks of the head in the method's order as text."""
        return f"{self.title}, density {self.plan.density:.3f}\n{self.plan.block_map.draw(head=self.head, width=width)}"


class _Captured(Exception):
    """Ends a generation of which enough was seen."""


@dataclass(frozen=True)
class _Capture:
    """A method that plans as another one does, and ends the generation at the plan that is asked for."""

    method: Method
    step: int
    layer: int
    plans: list[Plan] = field(default_factory=list)

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Return the method's plan, or end."""
        plan = self.method.plan(call, memory)
        if (call.progress.step, call.layer) == (self.step, self.layer):
            self.plans.append(plan)
            raise _Captured
        return plan


def draw_patterns(method: Any, frames: int, height: int, width: int) -> list[Drawing]:
    """Return the patterns that a method has before it has seen anything; InputError if it has none."""
    patterns = getattr(method, "patterns", lambda geometry: {})(Geometry(frames, height, width))
    if not patterns:
        raise InputError(
            f"the blocks of {name_of(method)} follow queries and keys; give --prompt to see a generation's"
        )
    return [Drawing(f"{name_of(method)}: {name}" if name else name_of(method), plan) for name, plan in patterns.items()]


def draw_generation(
    loaded: LoadedPipeline,
    method: Method,
    prompt: str,
    step: int,
    layer: int,
    head: int,
    **options: Unpack[CallOptions],
) -> Drawing:
    """Return what a head visits in one step and layer (of the first guidance branch) of a real generation.

    InputError where there is no such step, layer or head, or the call is not sparse.
    """
    seed, call = call_arguments(loaded, prompt, **options)
    capture = _Capture(method, step, layer)
    with enabled(loaded.pipeline, capture):
        try:
            run(loaded, call, seed, "sparse", lambda message: None, output_type="latent")
        except _Captured:
            pass
    title = f"{name_of(method)}, step {step}, layer {layer}, head {head}"
    if not capture.plans:
        layers = len(loaded.adapter.modules(loaded.transformers[0]))
        raise InputError(f"no call of step {step}, layer {layer}; there are {call['num_inference_steps']} and {layers}")
    (plan,) = capture.plans
    if not isinstance(plan, Sparse):
        raise InputError(f"{title} is not sparse ({type(plan).__name__.lower()}); give a later --step")
    heads = loaded.transformers[0].config.num_attention_heads
    if not 0 <= head < heads:
        raise InputError(f"head is {head}; there are {heads}, from 0")
    return Drawing(title, plan, head)


def write_picture(drawings: list[Drawing], file: Path) -> None:
    """Write a PNG: the blocks of each in the method's order, and under it the pairs in the order of the sequence."""
    small = all(drawing.plan.block_map.q_length <= PAIRS_AT_MOST for drawing in drawings)
    figure = Figure(figsize=(3.2 * len(drawings), 6.4 if small else 3.6), layout="constrained")
    grid = figure.subplots(2 if small else 1, len(drawings), squeeze=False)
    for column, drawing in enumerate(drawings):
        panels = [("blocks", drawing.plan.block_map.to_dense())] + ([("pairs", pairs(drawing.plan))] if small else [])
        for axes, (what, mask) in zip(grid[:, column], panels, strict=True):
            axes.imshow(mask[0, min(drawing.head, mask.shape[1] - 1)].cpu().numpy(), cmap="Greys", vmin=0, vmax=1)
            axes.set(xlabel=f"{what}: keys", ylabel="queries")
        grid[0, column].set_title(f"{drawing.title}\ndensity {drawing.plan.density:.3f}", fontsize=9)
    with replacing(file) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def pairs(plan: Sparse) -> Bool[Tensor, "b h s s"]:
    """Return the pairs of tokens that a plan computes, in the order of the sequence."""
    mask = plan.block_map.to_mask()
    for order, axis in ((plan.q_order, -2), (plan.kv_order, -1)):
        if order is not None:
            batch, heads = (max(a, b) for a, b in zip(mask.shape[:2], order.shape[:2], strict=True))
            place = order.argsort(-1).unsqueeze(-1 if axis == -2 else -2)
            mask = mask.expand(batch, heads, -1, -1)
            mask = torch.take_along_dim(mask, place, axis)
    return mask

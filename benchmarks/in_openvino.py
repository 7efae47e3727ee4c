"""OpenVINO as a peer: its attention alone, and a transformer of Wan's class converted as a whole."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.rows import installed

ARGUMENTS = ("hidden_states", "timestep", "encoder_hidden_states")


def has_openvino(device: str) -> bool:
    """Return whether OpenVINO runs beside us on a device; says so once where it is not installed."""
    return device == "cpu" and installed("OpenVINO", "openvino")


def attention(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"]
) -> Callable[[], Tensor]:
    """Return what runs OpenVINO's scaled dot product attention over these tensors, in their dtype."""
    openvino, operators = importlib.import_module("openvino"), importlib.import_module("openvino.opset13")
    kind = _kind(openvino, q.dtype)
    inputs = [operators.parameter(list(x.shape), kind) for x in (q, k, v)]
    model = openvino.Model([operators.scaled_dot_product_attention(*inputs)], inputs)
    request = _compile(openvino, model, kind).create_infer_request()
    held = [x.contiguous() for x in (q, k, v)]
    for index, x in enumerate(held):
        values = x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
        request.set_input_tensor(index, openvino.Tensor(values, openvino.Shape(list(x.shape)), kind))

    def run() -> Tensor:
        assert held
        request.infer()
        out = request.get_output_tensor(0).data
        return torch.from_numpy(out.view(np.int16)).view(torch.bfloat16) if kind != openvino.Type.f32 else _own(out)

    return run


@contextmanager
def converted(transformer: nn.Module, example: dict[str, Tensor]) -> Iterator[None]:
    """Run a transformer of Wan's class in OpenVINO for a `with` block, for inputs of the example's shapes.

    It computes in the transformer's dtype; its time to convert and compile lies before the block.
    """
    openvino = importlib.import_module("openvino")
    given = [example[name].float() for name in ARGUMENTS]
    with torch.no_grad():
        model = openvino.convert_model(
            _Plain(deepcopy(transformer).float()), example_input=tuple(given), input=[list(x.shape) for x in given]
        )
    dtype = next(transformer.parameters()).dtype
    request = _compile(openvino, model, _kind(openvino, dtype)).create_infer_request()

    def forward(**inputs: Any) -> tuple[Tensor]:
        request.infer([inputs[name].float().numpy() for name in ARGUMENTS], share_inputs=True)
        return (_own(request.get_output_tensor(0).data).to(dtype),)

    transformer.forward = forward
    try:
        yield
    finally:
        del transformer.forward


class _Plain(nn.Module):
    """A transformer with tensors in and a tensor out, as conversion wants it."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.transformer(hidden_states, timestep, encoder_hidden_states, return_dict=False)[0]


def _kind(openvino: Any, dtype: torch.dtype) -> Any:
    return openvino.Type.bf16 if dtype == torch.bfloat16 else openvino.Type.f32


def _compile(openvino: Any, model: Any, kind: Any) -> Any:
    """Return the model compiled for one request at a time on as many threads as torch has."""
    how = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": kind,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(model, "CPU", how)


def _own(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values))

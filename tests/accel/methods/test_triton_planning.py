"""Planning on a GPU: no step waits for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.attention.call import Geometry, LayerMemory
from tests.accel.methods.test_contract import run, small, steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["svg-ear", "svg2"])
def test_planning_on_a_gpu_waits_for_nothing(name: str) -> None:
    geometry, calls = Geometry(4, 16, 16), []
    for call in steps(2, 3, 4, geometry=geometry):
        q, k, v = (x.cuda().bfloat16() for x in (call.q, call.k, call.v))
        calls.append(replace(call, q=q, k=k, v=v, dense=lambda: pytest.fail("a sparse step")))
    method, memory = small(name), LayerMemory()
    run(method, calls[:-1], memory)  # builds the kernels; the first clustering draws its tokens on the CPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        (attended,) = run(method, calls[-1:], memory)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert attended.out.isfinite().all() and 0.3 < float(attended.density) < 0.5

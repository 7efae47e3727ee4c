"""Two processes share a sequence (Ulysses): what they make is what one process makes."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from diffusers import ContextParallelConfig
from diffusers.hooks import apply_context_parallel
from torch import Tensor

import accel
from accel.attention.call import AttentionCall, Geometry, LayerMemory, Progress
from accel.attention.heads import HeadShare
from accel.attention.masks.pattern_table import PatternTable
from accel.attention.plan import Sparse
from accel.methods.method import Method
from accel.methods.registry import METHODS, by_name
from accel.models.parallel import reason_against_exchange
from accel.models.session import Session
from tests.accel.calls import GRID, as_call, make_call, visited
from tests.accel.models.loops import Loop
from tests.accel.wan_models import generate, pipeline

SPARSE = dict(density=0.4, dense_steps=0.2)
PATIENCE = timedelta(seconds=60)


class _Wan:
    """A tiny Wan pipeline, and what it makes."""

    def __init__(self) -> None:
        self.pipe = pipeline("wan-2.1")

    def __call__(self) -> Tensor:
        return generate(self.pipe)


class _H3:
    """A loop over a tiny MiniMax-H3, and what it says in its last step."""

    def __init__(self) -> None:
        self.pipe = Loop("minimax-h3")
        inputs = self.pipe.inputs  # without the last row of audio: two processes share an even number of rows
        for name in ("timestep_indices", "token_tags", "position_ids", "audio_indices"):
            inputs[name] = inputs[name][:-1]
        inputs["audio_hidden_states"] = inputs["audio_hidden_states"][:, :-1]

    def __call__(self) -> Tensor:
        return self.pipe()[-1]


def _made(model: Any, name: str) -> tuple[Tensor, list[float], set[str]]:
    options = {} if name == "full" else SPARSE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*window of density")
        with accel.enabled(model.pipe, name, **options) as handle:
            out = model()
            return out, [record.density for record in handle.stats()], {record.kind for record in handle.stats()}


MODELS = {"wan": _Wan, "minimax-h3": _H3}


def _rank(rank: int, folder: str) -> None:
    """One of two processes, which writes what differed of each model."""
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, also where there is no accelerator
    warnings.filterwarnings("ignore", category=FutureWarning)  # of diffusers' own collectives
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=PATIENCE)
    said = {kind: _differences(make()) for kind, make in MODELS.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


def _differences(model: Any) -> dict[str, float]:
    """Of what is made together to what is made alone, before."""
    stock, alone = model(), {name: _made(model, name) for name in METHODS}
    model.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    said = {"stock": _difference(model(), stock)}
    for name in METHODS:
        together, densities, kinds = _made(model, name)
        said[name] = _difference(together, alone[name][0])
        assert kinds == alone[name][2] and len(densities) == len(alone[name][1]), name
    return said | {"after": _difference(model(), stock)}


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # Both are forks of one process, which has imported this module: that takes longer than what they do.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said.keys() == MODELS.keys()
        for differences in said.values():
            assert differences.keys() == {"stock", *METHODS, "after"}
            assert all(difference < 2e-5 for difference in differences.values()), said


def test_ring_attention_is_left_to_diffusers() -> None:
    q, config = torch.zeros(1, 8, 4, 16), SimpleNamespace(context_parallel_config=None)
    for degrees, heads, reason in (
        ((2, 1), 4, "ring attention"),
        ((1, 3), 4, "4 heads cannot be shared evenly by 3 devices"),
        ((1, 2), 2, "heads share keys"),
        ((1, 2), 4, None),
    ):
        config.context_parallel_config = SimpleNamespace(ring_degree=degrees[0], ulysses_degree=degrees[1])
        said = reason_against_exchange(q, q[:, :, :heads], config)
        assert said is None if reason is None else said is not None and reason in said


@pytest.mark.parametrize(
    ("name", "split"),
    [("flux", True), ("flux-2", True), ("qwen-image", True), ("minimax-h3", False), ("wan-2.1", False)],
)
def test_a_session_knows_whether_devices_hold_text_and_video_by_turns(name: str, split: bool) -> None:
    loop = Loop(name)
    with accel.enabled(loop, "full", block=16) as handle:
        session = handle._attachments[0].hook.session
        assert session.denoising.current.in_pieces, "nobody knows before a generation"
        session.denoising.begin_call(None, Progress(1, 4, "cond"))
        assert not session.denoising.current.in_pieces
        config: Any = SimpleNamespace(_mesh=None)
        apply_context_parallel(loop.transformer, config, loop.transformer._cp_plan)
        session.denoising.begin_call(None, Progress(0, 4, "cond"))
        assert session.denoising.current.in_pieces == split


def test_text_and_video_by_turns_stay_dense() -> None:
    session, share = Session(by_name("full", block=16), 1), HeadShare(0, lambda x: x)
    calls = [  # rows, whether they are by turns, whether devices share them, and whether the call is dense
        (34, True, share, True),
        (34, False, share, False),
        (34, True, None, False),
        (24, True, share, False),
    ]
    for rows, in_pieces, shared, dense in calls:
        session.denoising.begin_call(Geometry(1, 4, 6, rest="before"), Progress(0, 2, "cond"))
        session.denoising.current.in_pieces = in_pieces
        q, wanted = torch.randn(1, rows, 2, 16), torch.zeros(1, rows, 2, 16)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            out = session.attend(0, q, q, q, stock=lambda *given, wanted=wanted: wanted, share=shared)
        assert (out is wanted) == dense == any("text and of video by turns" in str(each.message) for each in said)
    assert sum(session.denoising.current.obstacles.values()) == 1


@pytest.mark.parametrize("name", ["adaspa", "svg2", "svg-ear", "sparse-vdit"])
def test_what_counts_over_all_heads_is_the_same_on_each_device(name: str) -> None:
    """Four heads, two a device: the plan of each is its part of the whole layer's."""
    whole = make_call(3, 10, heads=4, centres=6)
    options: dict[str, Any] = dict(density=0.3, dense_steps=0.0)
    if name == "sparse-vdit":
        modes = ["diagonal", "stripe", "skip", "multi-diagonal"]
        options["table"] = PatternTable("", GRID.grid, [[modes] * whole.layers])
    method = by_name(name, **options)
    expected, barrier, boxes = _visited(method, whole), Barrier(2, timeout=20), [torch.empty(0)] * 2

    def device(rank: int) -> Tensor:
        def gather(x: Tensor) -> Tensor:
            boxes[rank] = x
            barrier.wait()
            together = torch.cat(boxes, 1)
            barrier.wait()
            return together

        own = slice(2 * rank, 2 * rank + 2)
        call = as_call(whole.q[:, own], whole.k[:, own], whole.v[:, own], whole.geometry, whole.progress)
        return _visited(method, replace(call, share=HeadShare(2 * rank, gather)))

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(device, range(2)))
    assert torch.equal(torch.cat(parts, 1), expected)


def _visited(method: Method, call: AttentionCall) -> Tensor:
    memory = LayerMemory()
    method.plan(call, memory)  # may be a search, which says nothing yet of what is visited
    plan = method.plan(call, memory)
    assert isinstance(plan, Sparse)
    return visited(plan)

"""Loops that begin with a picture or a video, and so in the middle of their schedule: what counts from where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from torch import Tensor

import accel
from accel.attention.call import Progress
from accel.caching.forecast import History
from accel.caching.policy import BlockCall, Memory, Reuse
from accel.caching.registry import from_text
from accel.caching.table import BlockTable, Table
from tests.accel.caching.toys import DEPTH, Toy, make_loop, play
from tests.accel.wan_models import embeddings, generate, pipeline, transformer, vae

STEPS, FIRST = 50, 35


@pytest.mark.parametrize(
    ("text", "computed"),
    [
        ("table:every=2:warmup=1", [0, 2, 4, 6, 8, 10, 12, 14]),
        ("table:every=3:warmup=0.2", [0, 1, 2, 3, 6, 9, 12]),
        ("table:every=2:growth=1:warmup=1", [0, 2, 5, 9, 14]),
        ("easy:threshold=99:warmup=2", [0, 1, 14]),
        ("easy:threshold=99:warmup=0.2:last=0.2", [0, 1, 2, 12, 13, 14]),
        ("dual-block:threshold=1:first=1:warmup=3", [0, 1, 2]),
        ("prune:threshold=1:first=1:warmup=0.2", [0, 1, 2]),
        ("prune:threshold=1:first=1:warmup=4:interval=3", [0, 3]),
    ],
)
def test_warm_ups_and_gaps_count_the_steps_that_run(text: str, computed: list[int]) -> None:
    loop, policy = make_loop(0, steps=STEPS, branches=("cond",)), from_text(text)
    kinds = play(Toy(), policy, loop, first=FIRST).kinds
    last = {step: kind for (step, _, block), kind in kinds.items() if block == DEPTH - 1}
    assert list(last) == list(range(FIRST, STEPS)) and set(last.values()) == {"computed", "reused"}
    assert [step - FIRST for step, kind in last.items() if kind == "computed"] == computed


def test_a_table_draws_its_line_through_steps_of_its_own() -> None:
    policy = Table(BlockTable("", tuple("c" if step in (0, 36, 40) else "r" for step in range(STEPS)), order=1))

    def decided(first: int, step: int, *computed: int) -> Any:
        x, history = torch.zeros(1, 1, 1), History(list(computed), [torch.zeros(1, 1, 1)] * len(computed))
        call = BlockCall(x, x, range(1), Progress(step, STEPS, "cond", first=first))
        return policy.decide(call, Memory(lambda kind, key: history, call))

    assert decided(FIRST, 38, 35) == decided(FIRST, 39, 35, 36) == Reuse(0), "35 is computed only as the first"
    assert decided(FIRST, 41, 36, 40) == Reuse(1)
    assert decided(0, 39, 35, 36) == Reuse(1), "as ever in a loop from the start"


@pytest.fixture
def parts() -> Iterator[tuple[Any, Tensor, Tensor]]:
    """A pipeline, latents and text, for loops written by hand."""
    latents = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        yield pipeline("wan-2.1"), latents, embeddings(1)


@pytest.mark.parametrize("told", [True, False])
def test_the_first_step_is_seen(parts: tuple[Any, Tensor, Tensor], told: bool) -> None:
    """Also where the scheduler is not told where the loop begins, as in Wan's video to video."""
    pipe, latents, text = parts
    handle = accel.enable(pipe, None, cache="table:every=3:warmup=2")
    for first, expected in ((FIRST, "ccr" + "crr" * 4), (0, "ccr" + "crr" * 15 + "cr")):
        pipe.scheduler.set_timesteps(STEPS)
        if told:
            pipe.scheduler.set_begin_index(first)
        for t in pipe.scheduler.timesteps[first:]:
            pipe.transformer(latents, t.expand(1), text, return_dict=False)
        seen = {record.step: record.kind[0] for record in handle.blocks()}
        assert list(seen) == list(range(first, STEPS)) and "".join(seen.values()) == expected


def test_a_schedule_of_another_pipeline_begins_nothing(parts: tuple[Any, Tensor, Tensor]) -> None:
    """The hook reads one scheduler; another pipeline with the same transformer may set its timesteps at any time."""
    pipe, latents, text = parts
    handle = accel.enable(pipe, None, cache="table:every=3:warmup=2")
    pipe.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step == 20:
            pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
        pipe.transformer(latents, t.expand(1), text, return_dict=False)
    kinds = {record.step: record.kind[0] for record in handle.blocks()}
    assert "".join(kinds.values()) == "ccr" + "crr" * 15 + "cr"


def test_an_expert_knows_where_the_loop_began() -> None:
    """It may run the last step alone; Wan's image to video tells a transformer no step, only its timestep."""
    pipe = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer(0, channels=36), transformer_2=transformer(1, channels=36), boundary_ratio=0.1,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    with accel.enabled(pipe, None, cache="table:every=4:warmup=0") as handle:
        generate(pipe)
        experts = [{block.step for block in generation.blocks} for generation in handle._generations]
        assert experts == [{0, 1, 2, 3}, {4}]
        pipe.register_to_config(boundary_ratio=0.6)
        generate(pipe)
        kinds = [{block.step: block.kind for block in generation.blocks} for generation in handle._generations]
        assert kinds[0] == {0: "computed", 1: "reused", 2: "reused"}
        assert kinds[1] == {3: "computed", 4: "computed"}, "step 4 is the loop's fourth, and not its own first one"

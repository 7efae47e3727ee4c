"""What every cache policy owes, whatever its paper: one test each, over all of the registry."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import accel
from accel.attention.call import Geometry, Progress
from accel.caching.forecast import History
from accel.caching.hook import install_cache
from accel.caching.policy import Policy
from accel.caching.registry import POLICIES, by_name, from_text, name_of
from accel.caching.resting import Resting
from accel.models.denoising import Denoising
from accel.routing.folder import save_routers
from tests.accel.caching.toys import TOKENS, TOY, Toy, make_loop, play
from tests.accel.routing.made import toy_routers, wan_routers
from tests.accel.wan_models import STEPS, embeddings, generate, pipeline, stock_of, transformer

# Where a policy has such options, most of what may rest does.
EAGER = {"threshold": 0.99, "first": 1, "last": 0}

every_policy = pytest.mark.parametrize("name", POLICIES)


def made(name: str, toy: bool = False, **options: Any) -> Policy:
    """Return a policy; that of routers has new ones, for a tiny pipeline or a toy."""
    if name == "routers":
        options = {"routers": toy_routers() if toy else wan_routers(), **options}
    return by_name(name, **options)


def eager(name: str, toy: bool = False, **options: Any) -> Policy:
    """Return the policy with options with which it rests in tiny pipelines."""
    fields = {field.name for field in dataclasses.fields(POLICIES[name])}
    fitting = {key: value for key, value in EAGER.items() if key in fields}
    # New routers say 0.7 to everything: the band in which something is reused.
    band = {"threshold": 0.5, "margin": 0.3, "most_reuses": 2, "reuse_after": 0.0}
    fitting |= band if name == "routers" else {}
    return made(name, toy, **{"warmup": 1, **fitting, **options})


class Stop(Exception):
    """Raised in the middle of a generation."""


def stop(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    if step == 3:
        raise Stop
    return arguments


def interrupt(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step == 3
    return arguments


@every_policy
def test_a_policy_is_a_value_with_a_name(name: str, tmp_path: Path) -> None:
    given = ""
    if name == "routers":
        save_routers(wan_routers(), tmp_path)
        given = f":path={tmp_path}"
    policy, other = from_text(f"{name}{given}:order=1"), from_text(name + given)
    assert policy != other and policy.order == 1 and hash(policy) and name_of(policy) == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.order = 0  # type: ignore[misc]


@every_policy
@pytest.mark.parametrize("kind", ["wan-2.1", "wan-2.1-i2v", "wan-2.2"])
def test_what_always_computes_is_the_stock_pipeline(name: str, kind: str) -> None:
    pipe, stock = pipeline(kind), stock_of(kind)
    with accel.enabled(pipe, None, cache=eager(name, warmup=STEPS)) as handle:
        assert torch.equal(generate(pipe), stock)
        assert {record.kind for record in handle.blocks()} == {"computed"}


@every_policy
@pytest.mark.parametrize("kind", ["wan-2.1", "wan-2.1-i2v", "wan-2.2"])
@pytest.mark.parametrize("order", [0, 1])
def test_generations_of_a_real_pipeline(name: str, kind: str, order: int) -> None:
    pipe, stock = pipeline(kind), stock_of(kind)
    with accel.enabled(pipe, None, cache=eager(name, order=order)) as handle:
        first, records = generate(pipe), handle.blocks()
        layers = 2 * STEPS * 2
        assert sum(len(record.blocks) for record in records) == layers
        assert {record.kind for record in records} == {"computed", "reused"}
        assert {record.branch for record in records} == {"cond", "uncond"}
        assert handle.memory_bytes() == 0 < handle.peak_memory_bytes()
        assert first.isfinite().all() and 0 < (first - stock).abs().max() < stock.abs().max()
        generate(pipe, height=96)
        assert torch.equal(generate(pipe), first)
        both = generate(pipe, seeds=(0, 1))
        assert (both[:1] - first).abs().max() < 5e-5 * first.abs().max()
        summary = handle.summary()
        assert POLICIES[name].__name__ in summary and " computed, " in summary and "attention calls" not in summary
    assert torch.equal(generate(pipe), stock)


@every_policy
def test_sparse_attention_goes_on_where_blocks_are_computed(name: str) -> None:
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", cache=eager(name), density=0.3, block=16, dense_steps=0.2) as handle:
        first = generate(pipe)
        computed = sum(len(record.blocks) for record in handle.blocks() if record.kind == "computed")
        calls = handle.stats()
        assert len(calls) == computed < 2 * STEPS * 2 and "sparse" in {call.kind for call in calls}
        assert "AdaSpa" in handle.summary() and "attention calls" in handle.summary()
        assert torch.equal(generate(pipe), first)
        both = generate(pipe, seeds=(0, 1))
        assert (both[:1] - first).abs().max() < 5e-5 * first.abs().max()


@every_policy
@pytest.mark.parametrize("order", [("cond", "uncond"), ("uncond", "cond")])
def test_branches_do_not_mix(name: str, order: tuple[str, str]) -> None:
    toy, policy = Toy(), eager(name, toy=True)
    both = play(toy, policy, make_loop(0, branches=order))
    loop = make_loop(0, branches=order)
    loop.text = {"cond": loop.text["cond"]}
    for key, output in play(toy, policy, loop).outputs.items():
        assert torch.equal(both.outputs[key], output)


@every_policy
@pytest.mark.parametrize("end", [stop, interrupt])
def test_a_generation_that_ends_early_leaves_nothing_behind(name: str, end: Any) -> None:
    pipe, stock = pipeline("wan-2.1"), stock_of("wan-2.1")

    def broken() -> None:
        if end is stop:
            with pytest.raises(Stop):
                generate(pipe, seeds=(7,), callback_on_step_end=end)
        else:
            generate(pipe, seeds=(7,), callback_on_step_end=end)

    with accel.enabled(pipe, None, cache=eager(name)) as handle:
        clean = generate(pipe)
        broken()
        assert torch.equal(generate(pipe), clean)
        broken()
    assert handle.memory_bytes() == 0
    assert torch.equal(generate(pipe), stock)


@every_policy
def test_a_hundred_generations_leave_nothing(name: str) -> None:
    toy, denoising, loop, policy = Toy(), Denoising(), make_loop(0, steps=5), eager(name, toy=True)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    play(toy, policy, loop, denoising)
    before = tensors()
    for _ in range(100):
        play(toy, policy, loop, denoising)
    assert tensors() <= before and not denoising.current.memories


@every_policy
def test_memory_is_counted(name: str) -> None:
    toy, denoising = Toy(), Denoising()
    play(toy, eager(name, toy=True, order=1), make_loop(0), denoising)
    hidden = TOKENS * 4 * 8
    assert denoising.latest.peak_memory_bytes >= 2 * 2 * hidden, "two branches, two tensors for the forecast"


@every_policy
def test_two_pipelines_on_two_threads_share_a_transformer(name: str) -> None:
    pipes = [pipeline("wan-2.1"), pipeline("wan-2.1")]
    pipes[1].transformer = pipes[0].transformer
    with accel.enabled(pipes[0], None, cache=eager(name)):
        alone = [generate(pipe, seeds=(seed,)) for seed, pipe in enumerate(pipes)]
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(generate, pipe, seeds=(seed,)) for seed, pipe in enumerate(pipes)]
            assert all(torch.equal(job.result(), clean) for job, clean in zip(jobs, alone, strict=True))


@every_policy
def test_half_precision(name: str) -> None:
    pipe = pipeline("wan-2.1")
    pipe.transformer.to(torch.bfloat16)
    kept: list[Tensor] = []
    made: list[Tensor] = []

    def note(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        states = [memory.state for generation in handle._generations for memory in generation.memories.values()]
        kept.extend(added for state in states if isinstance(state, History) for added in state.added)
        return arguments

    pipe.transformer.register_forward_hook(lambda module, inputs, output: made.append(output[0]))
    with accel.enabled(pipe, None, cache=eager(name, order=1)) as handle:
        assert generate(pipe, callback_on_step_end=note).isfinite().all()
        assert "reused" in {record.kind for record in handle.blocks()}
    assert kept and {x.dtype for x in kept} == {x.dtype for x in made} == {torch.bfloat16}


@every_policy
def test_batched_guidance_is_decided_row_by_row(name: str) -> None:
    """Both branches in one call, as CogVideoX-like pipelines and users' own loops do it."""
    model, latents = transformer(0), torch.randn(2, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe = pipeline("wan-2.1")
    pipe.transformer = model
    pipe.scheduler.set_timesteps(STEPS)
    text = torch.cat([embeddings(1), embeddings(2)])

    def loop(rows: slice) -> list[Tensor]:
        return [
            model(latents[rows] * (1 + step / 50), t.expand(len(latents[rows])), text[rows], return_dict=True).sample
            for step, t in enumerate(pipe.scheduler.timesteps)
        ]

    with torch.no_grad(), accel.enabled(pipe, None, cache=eager(name)) as handle:
        batched = loop(slice(0, 2))
        assert "reused" in {record.kind for record in handle.blocks()}
        for row in range(2):
            for both, one in zip(batched, loop(slice(row, row + 1)), strict=True):
                assert (both[row] - one[0]).abs().max() < 2e-5


@every_policy
def test_what_is_not_known_is_computed_and_said(name: str) -> None:
    model, (latents, text) = transformer(0), (torch.randn(1, 16, 3, 8, 8), embeddings(1))
    with torch.no_grad():
        stock = model(latents, torch.tensor([500.0]), text, return_dict=False)[0]
        accel.enable(model, None, cache=eager(name))
        with pytest.warns(UserWarning, match="accel's cache computes everything: the denoising step"):
            ours = model(latents, torch.tensor([500.0]), text, return_dict=False)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(latents, torch.tensor([400.0]), text, return_dict=False)
    assert torch.equal(ours, stock)


@every_policy
def test_gradients_are_left_alone(name: str) -> None:
    toy, denoising, loop = Toy(), Denoising(), make_loop(0)
    install_cache(toy, Resting(eager(name, toy=True), toy, TOY, denoising))
    denoising.begin_call(Geometry(1, 1, TOKENS), Progress(3, 5, "cond"), None, True)
    with pytest.warns(UserWarning, match="gradients are enabled"):
        toy(loop.latents[0], loop.text["cond"])[0].sum().backward()
    assert toy.blocks[0].weight.grad is not None and not denoising.current.memories


@every_policy
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 2}, "order must be 0 or 1, got 2"),
        ({"warmup": -0.1}, "warmup must be a share below 1 or a whole number of steps, got -0.1"),
        ({"warmup": 1.5}, "warmup must be a share below 1 or a whole number of steps, got 1.5"),
        ({"treshold": 0.1}, "has no option treshold; accepted: order, warmup"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name(name, **options)

"""Tables of blocks: their files, their choice under a budget, and the errors that it is made from."""

from __future__ import annotations

import dataclasses
import itertools
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from typer.testing import CliRunner

import accel
from accel.attention.call import Geometry, Progress
from accel.caching.calibration import Measuring, choose
from accel.caching.hook import install_cache
from accel.caching.registry import from_text
from accel.caching.table import BlockTable, Table
from accel.cli import app
from accel.errors import InputError
from accel.models.denoising import Denoising
from accel.workbench import calibration
from accel.workbench.calibration import Measure, calibrate
from accel.workbench.generation import generate as make
from accel.workbench.loading import LoadedPipeline
from tests.accel.caching.toys import DEPTH, TOKENS, TOY, Toy, make_loop, play
from tests.accel.wan_models import generate, pipeline
from tests.tiny_wan import save_tiny, tiny_pipeline

DEFAULTS = {
    "num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 1.0,
    "max_sequence_length": 16,
}  # fmt: skip


def cost(errors: np.ndarray, words: tuple[str, ...]) -> float:
    """Return the sum of errors of a schedule, infinite where it reuses what is not there."""
    total = 0.0
    for block in range(errors.shape[1]):
        age = 0
        for step, word in enumerate(words):
            age = 1 if word[block] == "c" else age + 1 if age else 0
            if word[block] == "s":
                total += errors[step, block, 0]
            elif word[block] == "r":
                reused = age - 1
                total += errors[step, block, reused] if 0 < reused < errors.shape[2] else np.inf
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [0.5, 0.75])
def test_the_choice_is_the_best_of_all(seed: int, budget: float) -> None:
    steps, depth, ages = 4, 2, 3
    errors = np.random.default_rng(seed).random((steps, depth, ages)) ** 3
    for age in range(1, ages):
        errors[:age, :, age] = np.inf
    words = choose(errors, budget)
    assert len(words) == steps and all(len(word) == depth for word in words) and words[0] == "c" * depth
    assert "".join(words).count("c") <= budget * steps * depth
    every = itertools.product("crs", repeat=(steps - 1) * depth)
    schedules = (("cc", *("".join(letters[i : i + depth]) for i in range(0, len(letters), depth))) for letters in every)
    allowed = (words for words in schedules if "".join(words).count("c") <= budget * steps * depth)
    assert cost(errors, words) == pytest.approx(min(cost(errors, each) for each in allowed))


@pytest.mark.parametrize(
    ("text", "computed"),
    [
        ("table:every=2:growth=1:warmup=1", [0, 2, 5, 9, 14, 20, 27]),
        ("table:every=2:growth=1:warmup=3", [0, 1, 2, 4, 7, 11, 16, 22, 29]),
        ("table:every=4:growth=3:warmup=0", [0, 4, 11, 21]),
        ("table:every=10:warmup=2", [0, 1, 10, 20]),
    ],
)
def test_gaps_may_grow(text: str, computed: list[int]) -> None:
    policy = from_text(text)
    assert [step for step in range(30) if policy._due(step, 30)] == computed
    assert policy.computed_steps(30) == computed
    assert Table(table=BlockTable("", ("cc", "rc", "rr"))).computed_steps(3) == [0, 1]
    with pytest.raises(ValueError, match="growth must be 0 or more, got -1"):
        from_text("table:growth=-1")


def test_a_budget_below_the_warm_up_is_refused() -> None:
    with pytest.raises(InputError, match="budget is 0.2, and the warm-up alone computes 0.5 of all blocks"):
        choose(np.ones((4, 2, 2)), 0.2, warmup=2)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_errors_that_are_not_finite_are_said(value: float) -> None:
    errors = np.ones((4, 2, 2))
    errors[2] = value
    with pytest.raises(InputError, match="no error of a block that rests is finite"):
        choose(errors, 0.25)


def test_a_budget_counts_the_blocks_of_unequal_groups() -> None:
    errors = np.random.default_rng(0).random((12, 2, 4))
    errors[:, 0] *= 100  # the group of four wants to be computed
    words = choose(errors, 0.5, sizes=(4, 1))
    assert sum((4, 1)[group] for word in words for group, letter in enumerate(word) if letter == "c") <= 30


@pytest.mark.parametrize("size", [1, 4, None])
@pytest.mark.parametrize("order", [0, 1])
def test_errors_are_those_of_the_output(order: int, size: int | None) -> None:
    toy, denoising, loop = Toy(), Denoising(), make_loop(0, steps=5, branches=("cond",))
    measuring, text = Measuring(toy, TOY, denoising, 2, order, size), loop.text["cond"]
    size = size or DEPTH
    install_cache(toy, measuring)
    added: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for step, latents in enumerate(loop.latents):
            denoising.begin_call(Geometry(1, 1, TOKENS), Progress(step, 5, "cond"), None, True)
            (out,) = toy(latents, text)
            inputs = [toy.embed(latents)]
            for block in toy.blocks:
                inputs.append(type(block).forward(block, inputs[-1], text))
            ends = [(start, min(start + size, DEPTH)) for start in range(0, DEPTH, size)]
            added.append([inputs[end] - inputs[start] for start, end in ends])
            assert torch.equal(out, toy.head(inputs[-1]))
            for group, age in itertools.product(range(len(ends)), range(3)):
                if age > step:
                    assert (step, group, age) not in measuring.errors
                    continue
                rest = 0 if age == 0 else added[step - age][group]
                older = max(0, step - age - age - 1)
                if order and age and step - age >= 1:
                    rest = rest + (rest - added[older][group]) * age / (step - age - older)
                y = inputs[ends[group][0]] + rest
                for block in toy.blocks[ends[group][1] :]:
                    y = type(block).forward(block, y, text)
                expected = (toy.head(y) - out).square().sum()
                assert measuring.errors[step, group, age].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("group", [1, None])
def test_a_table_made_for_a_model_runs_in_it(tmp_path: Path, group: int | None) -> None:
    loaded, prompt = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS), "a red circle moves left"
    measure = Measure(order=1, group=group, probes=2)
    table = calibrate(loaded, [prompt, "a blue square moves up"], 0.5, {}, measure)
    assert not loaded.pipeline.transformer._diffusers_hook.hooks
    table.save(tmp_path / "table.json")
    policy = from_text(f"table:table={tmp_path / 'table.json'}")
    assert policy == Table(table) and policy.order == 1
    report = make(loaded, prompt, cache=policy).report
    assert report["blocks"] == list(table.steps) and report["blocks_computed"] == pytest.approx(0.5)


def test_every_prompt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the second prompt are as large in the choice as those of the first, by which they are weighed."""
    errors = {"a": [np.inf, 1.0, 4.0, 9.0], "b": [np.inf, 100.0, 1.0, 1.0]}  # of reusing at each step
    rested: list[int | None] = []

    def measured(loaded: Any, prompt: str, *rest: Any) -> np.ndarray:
        made = np.full((4, 1, 2), 1e9)
        made[:, 0, 1] = errors[prompt]
        return made

    @contextmanager
    def attached(pipe: Any, method: Any, cache: Any) -> Any:
        rested.append(next((step for step, word in enumerate(cache.table.steps) if "r" in word), None))
        yield

    def run(*given: Any, **options: Any) -> Any:
        return np.array([0.0 if rested[-1] is None else errors["a"][rested[-1]] ** 0.5]), 0.0

    for name, stub in (("_errors", measured), ("enabled", attached), ("run", run)):
        monkeypatch.setattr(calibration, name, stub)
    loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
    table = calibrate(loaded, ["a", "b"], 0.75, {}, Measure(ages=1, probes=3))
    assert [word[0] for word in table.steps] == ["c", "c", "r", "c"], "4 + 1 there, 1 + 100 in the step before"


def test_a_budget_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_errors", pytest.fail)
    loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
    with pytest.raises(InputError, match="budget is 0.1, and the warm-up alone computes 0.25"):
        calibrate(loaded, ["a red circle moves left"], 0.1, {})


def test_a_model_without_known_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As LTX-2 and MiniMax-H3 are."""
    loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
    monkeypatch.setattr(LoadedPipeline, "adapter", dataclasses.replace(loaded.adapter, blocks=None))
    with pytest.raises(InputError, match="'tiny' is a WanTransformer3DModel, which has no block stack that accel know"):
        calibrate(loaded, ["a red circle moves left"], 0.5, {})


def test_a_scheduler_of_second_order_is_refused() -> None:
    loaded = LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)
    loaded.pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with pytest.raises(InputError, match="steps is 4, and the scheduler makes 7 of them .is it of second order"):
        calibrate(loaded, ["a red circle moves left"], 0.5, {})
    assert not loaded.pipeline.transformer._diffusers_hook.hooks


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    model, output = save_tiny(tmp_path / "tiny", **DEFAULTS), tmp_path / "table.json"
    arguments = ["calibrate", "a red circle moves left", "--model", str(model), "--output", str(output)]
    result = CliRunner().invoke(app, [*arguments, "--budget", "0.75"])
    assert result.exit_code == 0, result.output
    assert "step  0  cc" in result.stdout and BlockTable.load(output).depth == 2
    refused = CliRunner().invoke(app, [*arguments, "--budget", "0.1"])
    assert refused.exit_code == 2 and "error: budget is 0.1, and the warm-up alone" in refused.stderr


def test_neighbours_that_rest_together_keep_one_tensor() -> None:
    words = ("cccccc", "crrrcc", "cccccc", "csrrcc")
    policy = Table(BlockTable("Toy", words))
    assert policy.units(6) == (range(1, 2), range(2, 4)), "those that never rest keep nothing"
    denoising = Denoising()
    kinds = play(Toy(), policy, make_loop(0, steps=4, branches=("cond",)), denoising).kinds
    assert all(kinds[step, "cond 0", block][0] == words[step][block] for step in range(4) for block in range(6))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"model": "Wan", "steps": []}),
        json.dumps({"model": "Wan", "steps": ["cc", "c"]}),
        json.dumps({"model": "Wan", "steps": ["cx"]}),
        json.dumps({"model": "Wan", "steps": [1]}),
        json.dumps({"model": "Wan", "steps": ["cc"], "order": 2}),
        json.dumps({"model": "Wan", "steps": ["cc"], "order": True}),
        json.dumps({"model": "Wan", "steps": ["cc"], "order": 1.0}),
        "[" * 100_000,
        b"\x80\x04\x95 a pickle",
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "table.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="is no table of blocks.*make one with accel calibrate"):
        from_text(f"table:table={file}")


def test_a_table_of_another_model_or_number_of_steps() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(InputError, match="a model with 3 blocks .WanTransformer3DModel., and this one has 2: take tab"):
        accel.enable(pipe, None, cache=Table(BlockTable("WanTransformer3DModel", ("ccc",))))
    with pytest.raises(InputError, match="the table is of CogVideoXTransformer3DModel, and this is WanTransformer3DM"):
        accel.enable(pipe, None, cache=Table(BlockTable("CogVideoXTransformer3DModel", ("cc",))))
    assert not hasattr(pipe.transformer, "_diffusers_hook"), "nothing was attached"
    accel.enable(pipe, None, cache=Table(BlockTable("WanTransformer3DModel", ("cc", "rr"))))
    with pytest.raises(InputError, match="the table is of 2 steps, and this generation has 5: take table:every=2"):
        generate(pipe)

"""Every policy against a transcription of its rule in float64, over random loops, batches and orders of guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import accumulate
from math import ceil
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from accel.caching.policy import Policy
from accel.caching.prune import Prune
from accel.caching.registry import by_name
from tests.accel.caching.toys import DEPTH, Loop, Played, Toy, make_loop, play

ORDERS = [("cond", "uncond"), ("uncond", "cond"), ("cond",), ("call 0", "call 1")]


def forecast(history: list[tuple[int, Tensor]], step: int, order: int) -> Tensor:
    last, newer = history[-1]
    if order == 0 or len(history) == 1:
        return newer
    before, older = history[-2]
    return newer + (newer - older) * (step - last) / (last - before)


def easy(toy: Toy, policy: Any, loop: Loop) -> Played:
    """EasyCache, one sample."""
    played, history = Played(), {branch: [] for branch in loop.text}
    leader = "cond" if "cond" in loop.text else next(iter(loop.text))
    warmup, error, k, x_before, x_last, v_last = ceil(policy.warmup * loop.steps), 0.0, None, None, None, None
    for t, x in enumerate(loop.latents):
        computes = True
        if t < warmup or t == loop.steps - 1:
            error = 0.0
        elif k is not None:
            error += k * (x - x_before).abs().mean() / v_last.abs().mean()
            computes = not error < policy.threshold
            error = 0.0 if computes else error
        for branch, text in loop.text.items():
            if computes:
                (v,) = toy(x, text)
                history[branch].append((t, v - x))
            else:
                v = x + forecast(history[branch], t, policy.order)
            played.outputs[t, branch] = v
            for block in range(DEPTH):
                played.kinds[t, f"{branch} 0", block] = "computed" if computes else "reused"
        if computes:
            v = played.outputs[t, leader]
            if v_last is not None:
                k = (v - v_last).abs().mean() / (x - x_last).abs().mean()
            x_last, v_last = x, v
        x_before = x
    return played


class Steps:
    """cache-dit's counters of one branch."""

    def __init__(self, policy: Any, steps: int) -> None:
        self.policy, self.cached, self.streak = policy, [], 0
        self.warmup = range(0, ceil(policy.warmup * steps), policy.interval)

    def begin(self, t: int) -> None:
        if not self.cached or self.cached[-1] != t - 1:
            self.streak = 0

    def add(self, t: int) -> None:
        if t not in self.cached:
            self.cached.append(t)
            self.streak += 1

    def verdict(self, t: int) -> bool | None:
        policy = self.policy
        if t in self.warmup:
            return False
        if policy.mask is not None:
            if t < len(policy.mask) and policy.mask[t] == "1":
                return False
            if policy.static:
                return True
        if policy.most_steps is not None and len(self.cached) >= policy.most_steps:
            return False
        streak = self.streak - 1 if self.cached and self.cached[-1] == t else self.streak
        if policy.most_in_a_row is not None and streak >= policy.most_in_a_row:
            return False
        return None


def dual_block(toy: Toy, policy: Any, loop: Loop) -> Played:
    """DBCache, one sample."""
    played, first, end = Played(), policy.first, DEPTH - policy.last
    for branch, text in loop.text.items():
        steps, residual_before, history, total = Steps(policy, loop.steps), None, [], 0.0
        for t, latents in enumerate(loop.latents):
            steps.begin(t)
            x = entry = toy.embed(latents)
            for block in toy.blocks[:first]:
                x = block(x, text)
            residual = x - entry
            rests = steps.verdict(t)
            if rests is None and policy.most_change and total >= policy.most_change:
                rests = False
            if rests is None and policy.threshold > 0 and residual_before is not None:
                if policy.threshold >= 1:
                    rests = True
                else:
                    change = ((residual_before - residual).abs().mean() / residual_before.abs().mean()).item()
                    total += change
                    rests = change < policy.threshold
            if rests and residual_before is not None:
                steps.add(t)
                x = x + forecast(history, t, policy.order)
            else:
                residual_before, start = residual, x
                for block in toy.blocks[first:end]:
                    x = block(x, text)
                history.append((t, x - start))
            for block in toy.blocks[end:]:
                x = block(x, text)
            played.outputs[t, branch] = toy.head(x)
            for block in range(DEPTH):
                is_rest = first <= block < end and t in steps.cached
                played.kinds[t, f"{branch} 0", block] = "reused" if is_rest else "computed"
    return played


def prune(toy: Toy, policy: Any, loop: Loop) -> Played:
    """DBPrune, one sample."""
    played = Played()
    runs = [*range(policy.first), *policy.kept, *range(DEPTH - policy.last, DEPTH)]
    for branch, text in loop.text.items():
        steps, inputs, history = Steps(policy, loop.steps), {}, {index: [] for index in range(DEPTH)}
        for t, latents in enumerate(loop.latents):
            steps.begin(t)
            x, diffs = toy.embed(latents), []
            for index, block in enumerate(toy.blocks):
                rests = False
                if index not in runs:
                    rests = steps.verdict(t)
                    threshold, positive = policy.threshold, [diff for diff in diffs[:5] if diff > 0]
                    if policy.relaxed and positive:
                        relaxed = policy.relax * sum(positive) / len(positive)
                        if relaxed < (policy.most_threshold or 2 * policy.threshold):
                            threshold = max(threshold, relaxed)
                    if rests is None and threshold > 0 and index in inputs:
                        if threshold >= 1:
                            rests = True
                        else:
                            diffs.append(((inputs[index] - x).abs().mean() / inputs[index].abs().mean()).item())
                            rests = diffs[-1] < threshold
                if rests and index in inputs:
                    steps.add(t)
                    x = x + forecast(history[index], t, policy.order)
                else:
                    inputs[index], out = x, block(x, text)
                    history[index].append((t, out - x))
                    x = out
                played.kinds[t, f"{branch} 0", index] = "reused" if rests and t in steps.cached else "computed"
            played.outputs[t, branch] = toy.head(x)
    return played


def table(toy: Toy, policy: Any, loop: Loop) -> Played:
    """A fixed interval, or one that grows, one sample."""
    played, warm = Played(), ceil(policy.warmup * loop.steps)
    gaps = accumulate(policy.every + policy.growth * i for i in range(loop.steps))
    due = [max(warm - 1, 0) + gap for gap in gaps] if policy.growth else range(0, loop.steps, policy.every)
    for branch, text in loop.text.items():
        history: list[tuple[int, Tensor]] = []
        for t, latents in enumerate(loop.latents):
            computes = t == 0 or t < warm or t in due
            x = toy.embed(latents)
            out = x + forecast(history, t, policy.order) if not computes else x
            if computes:
                for block in toy.blocks:
                    out = block(out, text)
                history.append((t, out - x))
            played.outputs[t, branch] = toy.head(out)
            for block in range(DEPTH):
                played.kinds[t, f"{branch} 0", block] = "computed" if computes else "reused"
    return played


RULES: dict[str, Callable[[Toy, Any, Loop], Played]] = {
    "easy": easy,
    "dual-block": dual_block,
    "prune": prune,
    "table": table,
}


def random_policy(name: str, seed: int) -> Policy:
    """Return the policy with options drawn at random."""
    draw = Random(seed)
    options: dict[str, Any] = {"order": draw.choice([0, 1]), "warmup": draw.choice([0, 0.1, 0.2])}
    if name == "easy":
        options |= {"threshold": draw.choice([0.02, 0.1, 0.3])}
    if name == "table":
        options |= {"every": draw.choice([1, 2, 3]), "growth": draw.choice([0, 0, 1, 2])}
    if name in ("dual-block", "prune"):
        options |= {
            "threshold": draw.choice([0, 0.05, 0.2, 0.5, 1]),
            "first": draw.choice([1, 2]),
            "last": draw.choice([0, 1]),
            "interval": draw.choice([1, 2]),
            "most_steps": draw.choice([None, None, 5]),
            "most_in_a_row": draw.choice([None, None, 1, 2]),
            "mask": draw.choice([None, None, "11010010110001"]),
            "static": draw.choice([False, True]),
        }
    if name == "dual-block":
        options |= {"most_change": draw.choice([None, 0.05, 0.5])}
    if name == "prune":
        options |= {"kept": draw.choice([(), (3,)]), "relaxed": draw.choice([False, True])}
    return by_name(name, **options)


@pytest.mark.parametrize("branches", ORDERS, ids=" then ".join)
@pytest.mark.parametrize("name", RULES)
def test_a_policy_is_its_rule(name: str, branches: tuple[str, ...]) -> None:
    kinds = set()
    for seed in range(16):
        toy, policy, loop = Toy(seed), random_policy(name, seed), make_loop(seed, branches=branches)
        with torch.no_grad():
            expected = RULES[name](toy, policy, loop)
        played = play(toy, policy, loop)
        assert played.kinds == expected.kinds, policy
        for key, output in played.outputs.items():
            assert (output - expected.outputs[key]).abs().max() < 1e-12, (policy, key)
        kinds |= set(played.kinds.values())
    assert kinds == {"computed", "reused"}


@pytest.mark.parametrize("name", RULES)
def test_four_prompts_in_a_batch_are_four_single_runs(name: str) -> None:
    for seed in range(6):
        toy, policy, loop = Toy(seed), random_policy(name, seed), make_loop(seed, batch=4)
        together = play(toy, policy, loop)
        for row in range(4):
            alone = play(toy, policy, loop.sample(row))
            assert all(torch.equal(together.outputs[key][row : row + 1], alone.outputs[key]) for key in alone.outputs)
            if policy.by_content:
                assert {
                    (t, branch, b): k for (t, branch, b), k in together.kinds.items() if branch.endswith(f" {row}")
                } == {(t, branch.replace(" 0", f" {row}"), b): k for (t, branch, b), k in alone.kinds.items()}


@pytest.mark.parametrize(
    ("name", "most"),
    [("table", 0), ("easy", 1 / 2), ("dual-block", 1), ("prune", DEPTH - 1)],
)
def test_how_often_a_policy_waits_for_the_device(name: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never where the plan is static, once a step by EasyCache, once a call by DBCache, once a block by DBPrune."""
    waits = []
    for read in ("__bool__", "__float__", "item"):
        original = getattr(Tensor, read)

        def counting(tensor: Tensor, original: Any = original) -> Any:
            waits.append(1)
            return original(tensor)

        monkeypatch.setattr(Tensor, read, counting)
    play(Toy(), by_name(name, warmup=0), make_loop(0, steps=10))
    assert len(waits) <= most * 20


def test_the_relaxed_threshold_comes_from_the_first_five_changes() -> None:
    policy = Prune(threshold=0.1, relaxed=True, relax=2.0, most_threshold=0.5)
    assert policy._threshold([]) == policy._threshold([0.25]) == 0.1
    assert policy._threshold([0.1] * 5 + [0.9]) == pytest.approx(0.2)
    assert policy._threshold([0.1, -1.0, 0.2]) == pytest.approx(0.3)
    plain = Prune(threshold=0.1, relaxed=True)
    assert plain._threshold([0.1]) == pytest.approx(0.125) and plain._threshold([0.2]) == 0.1


@pytest.mark.parametrize("last", [0, 1, 4])
def test_easy_computes_the_last_steps(last: int) -> None:
    loop = make_loop(0, steps=10, branches=("cond",))
    kinds = play(Toy(), by_name("easy", threshold=9.0, warmup=2, last=last), loop).kinds
    assert [t for t in range(10) if kinds[t, "cond 0", 0] == "computed"] == [0, 1, *range(10 - last, 10)]


BOTH = ("most_steps", "most_in_a_row", "mask", "static", "interval", "last")
REACHED = [("dual-block", o) for o in (*BOTH, "most_change")] + [("prune", o) for o in (*BOTH, "kept", "relaxed")]


@pytest.mark.parametrize(("name", "option"), REACHED)
def test_random_loops_reach_every_option(name: str, option: str) -> None:
    for seed in range(16):
        policy, loop = random_policy(name, seed), make_loop(seed)
        other = dataclasses.replace(policy, **{option: getattr(by_name(name), option)})
        if other != policy and play(Toy(seed), other, loop).kinds != play(Toy(seed), policy, loop).kinds:
            return
    pytest.fail(f"{option} changes nothing in any loop")

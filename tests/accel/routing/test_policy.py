"""Routers at work in tiny real pipelines: skipped, reused and narrow blocks, and what must hold whatever they say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

import accel
from accel.attach import adapter_for
from accel.attention.call import Progress
from accel.caching.elastic import first_layer, kept_neurons, last_layer
from accel.caching.policy import BlockCall, Compute, Memory, Narrow, Reuse, Skip
from accel.caching.registry import by_name
from accel.caching.resting import Resting
from accel.models.denoising import Denoising
from accel.routing.folder import save_routers
from accel.routing.policy import Routed
from accel.routing.router import Router, Routers, RoutersConfig
from tests.accel.caching.toys import Toy, make_loop, play
from tests.accel.offloading import spoil_what_is_offloaded
from tests.accel.routing.made import toy_routers, wan_routers
from tests.accel.wan_models import generate, pipeline

VARIED = dict(margin=0.2, reuse_after=1, most_reuses=2)


def saying(gate: float = 9.0, width: int = 3, block: int | None = None) -> Routers:
    """Return routers, or that of one block, with these answers to everything: logit of the gate, number of a width."""
    routers = wan_routers()
    for index, router in enumerate(routers.blocks):
        assert isinstance(router, Router)
        chosen = block is None or index == block
        for head, answer in ((router.gate, torch.tensor([gate])), (router.width, torch.eye(4)[width] * 9)):
            head.weight.data.zero_()
            head.bias.data.copy_(answer if chosen else torch.tensor([9.0]) if head is router.gate else torch.eye(4)[3])
    return routers


@pytest.mark.parametrize("kind", ["wan-2.1", "wan-2.1-i2v", "wan-2.2"])
def test_all_gates_on_and_full_widths_are_the_stock_pipeline(kind: str) -> None:
    pipe = pipeline(kind)
    stock = generate(pipe)
    with accel.enabled(pipe, None, cache=Routed(routers=saying())) as handle:
        assert torch.equal(generate(pipe), stock)
        assert {record.kind for record in handle.blocks()} == {"computed"} and handle.peak_memory_bytes() == 0
    always = Routed(routers=wan_routers(varied=0), threshold=0.0, widths=False)
    with accel.enabled(pipe, None, cache=always):
        assert torch.equal(generate(pipe), stock)


@pytest.mark.parametrize("block", [0, 1])
def test_a_skipped_block_is_one_that_is_not_there(block: int) -> None:
    pipe, without = pipeline("wan-2.1"), pipeline("wan-2.1")
    without.transformer.blocks = nn.ModuleList([without.transformer.blocks[1 - block]])
    with accel.enabled(pipe, None, cache=Routed(routers=saying(-1.0, block=block))) as handle:
        assert torch.equal(generate(pipe), generate(without))
        assert "0.500 computed, 0.000 reused, 0.500 skipped" in handle.summary()


@pytest.mark.parametrize("width", [0, 1, 2])
def test_a_narrow_mlp_is_one_whose_other_neurons_are_off(width: int) -> None:
    pipe, masked = pipeline("wan-2.1"), pipeline("wan-2.1")
    mask = (torch.arange(64) < 16 * (width + 1)).float()
    masked.transformer.blocks[1].ffn.net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * mask,))
    expected = generate(masked)
    with accel.enabled(pipe, None, cache=Routed(routers=saying(width=width, block=1))) as handle:
        ours = generate(pipe)
        assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()
        assert not torch.equal(ours, generate_stock(pipe))
        assert "0.500 computed, 0.000 reused, 0.000 skipped, 0.500 narrow" in handle.summary()


def generate_stock(pipe: Any) -> Tensor:
    """Return what a pipeline makes without us."""
    with accel.enabled(pipe, "full", dense_steps=1):
        return generate(pipe)


def test_the_three_bands() -> None:
    """Against the rule by hand, with the probability that the routers give to each call."""
    toy, loop = Toy(), make_loop(0, steps=12)
    routers = toy_routers(varied=5)
    policy = Routed(routers=routers, margin=0.25, most_reuses=2, reuse_after=3)
    played = play(toy, policy, loop)
    seen = set()
    with torch.no_grad():
        state: dict[tuple[str, int], tuple[Tensor | None, int]] = {}
        for step, latents in enumerate(loop.latents):
            for branch, text in loop.text.items():
                x = toy.embed(latents)
                for index, block in enumerate(toy.blocks):
                    p = routers.read(index, x, latents.mean(-1))[0]
                    delta, used = state.get((branch, index), (None, 0))
                    kind = played.kinds[step, f"{branch} 0", index]
                    seen.add(kind)
                    if p < 0.5:
                        assert kind == "skipped"
                    elif p <= 0.75 and delta is not None and used < 2 and step >= 3:
                        assert kind == "reused"
                        x, state[branch, index] = x + delta, (delta, used + 1)
                    else:
                        assert kind == "computed"
                        out = type(block).forward(block, x, text)
                        x, state[branch, index] = out, (out - x, 0)
                assert (played.outputs[step, branch] - toy.head(x)).abs().max() < 1e-12
    assert seen == {"computed", "reused", "skipped"}


@pytest.mark.parametrize(
    ("threshold", "most", "kinds"),
    [(0.5, 5, {"computed", "reused"}), (0.7, 2, {"computed", "reused"}), (0.25, 5, {"computed"})],
)
def test_a_router_of_reuse_spreads_the_steps_that_its_rates_ask_for(
    threshold: float, most: int, kinds: set[str]
) -> None:
    toy, loop = Toy(), make_loop(0, steps=12)
    routers = toy_routers(varied=5, rest="reuse")
    policy = Routed(routers=routers, threshold=threshold, most_reuses=most)
    assert policy.units(6) == (range(6),) and policy.reuses
    played = play(toy, policy, loop)
    seen = []
    with torch.no_grad():
        state: dict[str, tuple[Tensor, int, float]] = {}
        for step, latents in enumerate(loop.latents):
            for branch, text in loop.text.items():
                entry = x = toy.embed(latents)
                kind = played.kinds[step, f"{branch} 0", 0]
                assert all(played.kinds[step, f"{branch} 0", index] == kind for index in range(6))
                added, used, owed = state.get(branch, (torch.zeros(()), 0, 0.0))
                owed += routers.read(0, x, latents.mean(-1))[0] if branch in state else 0.0
                if branch in state and owed < 2 * threshold and used < most:
                    assert kind == "reused"
                    x, state[branch] = x + added, (added, used + 1, owed)
                else:
                    assert kind == "computed"
                    for block in toy.blocks:
                        x = type(block).forward(block, x, text)
                    state[branch] = (x - entry, 0, min(max(0.0, owed - 2 * threshold), 2 * threshold))
                seen.append(kind)
                assert (played.outputs[step, branch] - toy.head(x)).abs().max() < 1e-12
    assert set(seen) == kinds


def test_four_prompts_in_a_batch_are_four_single_runs() -> None:
    toy, loop = Toy(), make_loop(0, batch=4)
    policy = Routed(routers=toy_routers(varied=5), **VARIED)
    together = play(toy, policy, loop)
    for row in range(4):
        alone = play(toy, policy, loop.sample(row))
        assert all(torch.equal(together.outputs[key][row : row + 1], out) for key, out in alone.outputs.items())
    pipe, seeds = pipeline("wan-2.1"), (0, 1, 2, 3)
    with accel.enabled(pipe, None, cache=Routed(routers=wan_routers(varied=22), **VARIED)) as handle:
        both = generate(pipe, seeds=seeds)
        batched = [(r.step, r.branch, r.blocks, r.kind) for r in handle.blocks() if r.sample == 3]
        singles = [generate(pipe, seeds=(seed,)) for seed in seeds]
        assert (both - torch.cat(singles)).abs().max() < 5e-5 * both.abs().max()
        assert [(r.step, r.branch, r.blocks, r.kind) for r in handle.blocks()] == batched


def test_routers_that_decide_all_kinds_of_things() -> None:
    pipe = pipeline("wan-2.1")
    stock = generate(pipe)
    kinds: set[str] = set()
    for variant, seed in (("published", 3), ("shared", 3), ("shared", 6), ("shared", 22)):
        policy = Routed(routers=wan_routers(variant, varied=seed), **VARIED)
        with accel.enabled(pipe, "adaspa", cache=policy, density=0.3, block=16, dense_steps=0.2) as handle:
            first = generate(pipe)
            kinds |= {record.kind for record in handle.blocks()}
            runs = sum(record.kind in ("computed", "narrow") for record in handle.blocks())
            assert len(handle.stats()) == runs and handle.memory_bytes() == 0
            generate(pipe, height=96)
            assert torch.equal(generate(pipe), first)
    assert kinds == {"computed", "reused", "skipped", "narrow"}
    assert torch.equal(generate(pipe), stock)
    assert not any(hasattr(m, "_diffusers_hook") and m._diffusers_hook.hooks for m in pipe.transformer.modules())


def test_a_timestep_for_each_token_is_averaged() -> None:
    """As Wan 2.2 TI2V has it: the same timestep everywhere decides as one timestep does."""
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, None, cache=Routed(routers=wan_routers(varied=22), **VARIED)) as handle:
        generate(pipe)
        expected = [record.kind for record in handle.blocks()]
        pipe.register_to_config(expand_timesteps=True)
        generate(pipe)
        assert [record.kind for record in handle.blocks()] == expected and len(set(expected)) == 3


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
@pytest.mark.parametrize("offload_first", [True, False])
def test_group_offloading(offload_first: bool, offload_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, policy = pipeline("wan-2.1"), Routed(routers=saying(width=1))
    # Of layers that are offloaded by themselves, slices are brought over from where they lie.
    layers = [layer for block in pipe.transformer.blocks for layer in (block.ffn.net[0].proj, block.ffn.net[2])]
    offloaded = spoil_what_is_offloaded(monkeypatch, layers if offload_type == "leaf_level" else ())
    with accel.enabled(pipe, None, cache=policy):
        expected = generate(pipe)

    def offload() -> None:
        cpu = torch.device("cpu")
        apply_group_offloading(pipe.transformer, cpu, cpu, offload_type=offload_type, num_blocks_per_group=1)

    if offload_first:
        offload()
    with accel.enabled(pipe, None, cache=policy) as handle:
        if not offload_first:
            offload()
        assert offloaded and torch.equal(generate(pipe), expected)
        assert "narrow" in {record.kind for record in handle.blocks()}


class Lora(nn.Module):
    """A layer with something of low rank beside it, as peft makes them."""

    def __init__(self, base_layer: nn.Linear, merged: bool) -> None:
        super().__init__()
        self.base_layer, self.merged = base_layer, merged

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * (1 if self.merged else 2)


def test_a_merged_lora_is_narrowed_and_another_refused() -> None:
    pipe, policy = pipeline("wan-2.1"), Routed(routers=saying(width=1))
    with accel.enabled(pipe, None, cache=policy):
        expected = generate(pipe)
    ffn = pipe.transformer.blocks[1].ffn
    plain = ffn.net[2]
    ffn.net[2] = Lora(plain, merged=True)
    with accel.enabled(pipe, None, cache=policy):
        assert torch.equal(generate(pipe), expected)
    ffn.net[2] = Lora(plain, merged=False)
    message = (
        "the MLP of block 1 of this WanTransformer3DModel cannot be narrowed: it carries a LoRA that is not merged"
    )
    with pytest.raises(ValueError, match=message):
        accel.enable(pipe, None, cache=policy)
    with accel.enabled(pipe, None, cache=Routed(routers=saying(width=1), widths=False)):
        generate(pipe)
    ffn.net[2] = plain
    with accel.enabled(pipe, None, cache=policy):
        ffn.net[2] = Lora(plain, merged=False)
        with pytest.raises(ValueError, match="call fuse_lora"):
            generate(pipe)
        ffn.net[2] = plain


class Quantised(nn.Linear):
    """A kind of layer that keeps its weights in its own way."""


def test_quantised_weights_are_refused() -> None:
    pipe, policy = pipeline("wan-2.1"), Routed(routers=saying(width=1))
    pipe.transformer.blocks[0].ffn.net[2] = Quantised(64, 64)
    with pytest.raises(ValueError, match="block 0 .* cannot be narrowed: Quantised does not hold plain weights"):
        accel.enable(pipe, None, cache=policy)
    pipe = pipeline("wan-2.1")
    pipe.transformer.blocks[0].ffn.net[2].to("meta")
    with pytest.raises(ValueError, match="its weights are not here .sequential offloading.; attach before"):
        accel.enable(pipe, None, cache=policy)
    assert not hasattr(pipe.transformer, "_diffusers_hook"), "nothing was attached"


@pytest.mark.parametrize("bias", [True, False])
def test_slices_of_layers(bias: bool) -> None:
    first, last = nn.Linear(6, 10, bias=bias), nn.Linear(10, 6, bias=bias)
    x = torch.randn(2, 3, 6)
    hidden = first_layer(first, x, 0.5)
    assert hidden.shape == (2, 3, 5) and (hidden - first(x)[..., :5]).abs().max() < 1e-6
    padded = torch.cat([hidden, torch.zeros(2, 3, 5)], -1)
    assert (last_layer(last, hidden, 0.5) - last(padded)).abs().max() < 1e-6
    assert first_layer(first, x.bfloat16(), 0.5).dtype == torch.bfloat16
    assert kept_neurons(0.01, 10) == 1 and kept_neurons(1, 10) == 10


def test_how_often_it_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    for read in ("__bool__", "__float__", "item", "tolist"):
        original = getattr(Tensor, read)

        def counting(tensor: Tensor, original: Any = original) -> Any:
            waits.append(1)
            return original(tensor)

        monkeypatch.setattr(Tensor, read, counting)
    loop = make_loop(0, steps=10)
    play(Toy(), Routed(routers=toy_routers(varied=5), **VARIED), loop)
    assert len(waits) == 10 * len(loop.text) * len(Toy().blocks), "once a block"


def test_nothing_is_kept_where_nothing_is_reused() -> None:
    denoising = Denoising()
    play(Toy(), Routed(routers=toy_routers(varied=5)), make_loop(0), denoising)
    assert denoising.latest.peak_memory_bytes == 0


def test_other_models_are_refused() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.raises(
        ValueError, match="of a Toy with 6 blocks of 4 channels, and this is a WanTransformer3DModel wit"
    ):
        accel.enable(pipe, None, cache=Routed(routers=toy_routers()))
    model = pipe.transformer
    policy = Routed(routers=wan_routers())
    with pytest.raises(ValueError, match="has no timestep embedding that accel knows"):
        Resting(policy, model, replace(adapter_for(model), time_embedding=None), Denoising())
    with pytest.raises(ValueError, match="has no MLP that accel knows how to narrow; leave widths off"):
        Resting(policy, model, replace(adapter_for(model), mlp=None), Denoising())
    assert not hasattr(model, "_diffusers_hook")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold must be from 0 to 1, got 1.5"),
        ({"margin": -0.1}, "margin must be 0 or more, got -0.1"),
        ({"most_reuses": -1}, "most_reuses must be 0 or more, got -1"),
        ({"reuse_after": 1.5}, "reuse_after must be a share below 1 or a whole number of steps"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name("routers", **{"routers": wan_routers(), **options})


def test_a_policy_on_two_devices_moves_no_routers() -> None:
    """Another thread may be using them; what is on no real device can be copied there, and not be read."""
    policy, place = Routed(routers=toy_routers()), torch.device("meta")
    x = torch.zeros(1, 5, 4, device=place, dtype=torch.float64)
    call = BlockCall(x, x, range(1), Progress(0, 4, "cond"), x[:, 0])
    with pytest.raises(RuntimeError, match="meta|unsupported"):  # there is no number to be read
        policy.decide(call, Memory(lambda kind, key: kind(), call))
    assert policy.routers is not None and policy.routers.device.type == "cpu"
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(policy._on, [place] * 8))
    assert copies[0].device == place and all(each is copies[0] for each in copies)
    assert policy._on(torch.device("cpu")) is policy.routers


def test_a_digest_is_of_the_weights_and_no_folder(tmp_path: Path) -> None:
    def digest(name: str, routers: Routers, backbone: dict[str, Tensor] | None = None) -> str | None:
        save_routers(routers, tmp_path / name, backbone)
        return Routed(path=str(tmp_path / name)).digest()

    tuned = {"scale": torch.tensor(1.5), "weight": torch.ones(2, 2, dtype=torch.bfloat16)}
    first = digest("a", wan_routers())
    assert first is not None and len(first) == 12 and digest("b", wan_routers()) == first
    others = [digest("a", wan_routers(varied=1)), digest("a", wan_routers(), tuned)]
    others.append(digest("a", wan_routers(), tuned | {"weight": tuned["weight"] / 2}))
    assert len({first, *others}) == 4


def test_decisions_are_values() -> None:
    assert Narrow(0.5) == Narrow(0.5) != Narrow(0.25) and len({Compute(), Skip(), Reuse(), Narrow(0.5)}) == 4


@pytest.mark.parametrize("offload_first", [True, False])
def test_narrow_mlps_of_weights_in_files(tmp_path: Path, offload_first: bool) -> None:
    pipe, policy, cpu = pipeline("wan-2.1"), Routed(routers=saying(width=1)), torch.device("cpu")
    with accel.enabled(pipe, None, cache=policy):
        expected = generate(pipe)

    def offload() -> None:
        path = str(tmp_path)
        apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=path)

    if offload_first:
        offload()
        with pytest.raises(ValueError, match="cannot be narrowed: its weights are offloaded to files; offload to mem"):
            accel.enable(pipe, None, cache=policy)
        return
    with accel.enabled(pipe, None, cache=policy):
        offload()
        assert (generate(pipe) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(("depth", "channels"), [(1, 64), (3, 64), (2, 32)])
def test_routers_of_another_depth_or_width_are_refused(depth: int, channels: int) -> None:
    pipe, routers = pipeline("wan-2.1"), Routers(RoutersConfig("WanTransformer3DModel", depth, channels, 16))
    message = f"with {depth} blocks of {channels} channels, and this is a WanTransformer3DModel with 2 blocks of 64"
    with pytest.raises(ValueError, match=message):
        accel.enable(pipe, None, cache=Routed(routers=routers))
    assert not hasattr(pipe.transformer, "_diffusers_hook")

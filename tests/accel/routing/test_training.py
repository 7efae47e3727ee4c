"""Training of routers on a tiny transformer: losses, straight-through gradients, rates, resuming, and being killed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import WanTransformer3DModel
from torch import Tensor

import accel
from accel.errors import InputError
from accel.models.adapters.wan import WAN
from accel.routing import training
from accel.routing.execution import RoutedTransformer
from accel.routing.folder import read_routers
from accel.routing.losses import gate_rate_loss, step_rate_loss, target_rate, velocity_loss, width_rate_loss
from accel.routing.policy import Routed
from accel.routing.recipe import Recipe, learning_rate_factor
from accel.routing.router import WIDTHS, Routers, RoutersConfig
from accel.routing.training import RouterTrainer
from tests.accel.routing.made import vary, wan_routers
from tests.accel.wan_models import embeddings, pipeline

DEPTH, CHANNELS = 4, 32
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(5))
LATENTS = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(6))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers its precision for as long as a process lives."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=64, num_layers=DEPTH, cross_attn_norm=True, rope_max_seq_len=16,
    )  # fmt: skip


def trainer(**options: Any) -> RouterTrainer:
    return RouterTrainer(tiny(), WAN, Recipe(**{"learning_rate": 1e-2, "alone": 0, **options}))


def run(made: RouterTrainer, steps: int, decay: bool = False) -> list[float]:
    """Return the losses of some steps on two samples."""
    factors = [learning_rate_factor(number / steps) if decay else 1.0 for number in range(steps)]
    return [made.step(LATENTS, TEXT, factor)["loss"].item() for factor in factors]


@torch.no_grad()
def measured(made: RouterTrainer, timestep: float | None = None) -> dict[str, float]:
    """Return the means of the figures over many draws, all at one timestep or as they come."""
    sums: dict[str, float] = {}
    for _ in range(20):
        made.done += 1
        noise, drawn, before = made.draw(LATENTS)
        timesteps = drawn if timestep is None else torch.full((2,), timestep)
        for name, value in made.losses(LATENTS, noise, timesteps, before, TEXT).items():
            sums[name] = sums.get(name, 0.0) + value.item() / 20
    made.done -= 20
    return sums


def test_the_target_goes_from_high_to_low() -> None:
    rates = target_rate(torch.tensor([0.0, 500.0, 1000.0]), 0.8, 0.4)
    assert torch.allclose(rates, torch.tensor([0.8, 0.6, 0.4]))


def test_losses_by_hand() -> None:
    p, g = torch.tensor([[0.9, 0.6], [0.5, 0.2]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    target = torch.tensor([0.6, 0.5])
    expected = ((0.7 - 0.6) ** 2 + (1 - 0.6) ** 2 + (0.4 - 0.5) ** 2 + (0.5 - 0.5) ** 2) / 2
    assert gate_rate_loss(p, g, target).item() == pytest.approx(expected, rel=1e-5)
    soft, hard = torch.tensor([[0.8, 0.7], [0.4, 0.1]]), torch.tensor([[1.0, 0.75], [0.25, 0.25]])
    expected = ((0.6 - 0.5) ** 2 + (0.625 - 0.5) ** 2 + (0.7 - 0.5) ** 2 + (0.75 - 0.5) ** 2) / 2
    assert width_rate_loss(soft, hard, g, 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert width_rate_loss(soft, hard, torch.zeros(2, 2), 0.5).item() == 0
    x, noise = torch.zeros(1, 1, 1, 1, 2), torch.tensor([1.0, 2.0]).view(1, 1, 1, 1, 2)
    weights = torch.tensor([2.0, 0.0]).view(1, 1, 1, 1, 2)
    assert velocity_loss(x, noise - x).item() == 2.5 and velocity_loss(x, noise - x, weights).item() == 1


def routed(varied: int | None = None, spread: float = 1.0, widths: tuple[float, ...] = WIDTHS) -> RoutedTransformer:
    torch.manual_seed(1)
    routers = Routers(RoutersConfig("WanTransformer3DModel", DEPTH, CHANNELS, 16, widths))
    return RoutedTransformer(tiny(), routers if varied is None else vary(routers, varied, spread), WAN)


@pytest.mark.parametrize("joint", [0.0, 1e-2])
def test_a_teacher_is_the_transformer_as_it_was(joint: float) -> None:
    made = trainer(distillation=1.0, backbone_rate=joint)
    noise, *timesteps = made.draw(LATENTS)
    assert made.losses(LATENTS, noise, *timesteps, TEXT)["error"] == 0  # new routers let every block run
    half = trainer(distillation=0.5, backbone_rate=joint).losses(LATENTS, noise, *timesteps, TEXT)["error"]
    whole = trainer(backbone_rate=joint).losses(LATENTS, noise, *timesteps, TEXT)["error"]
    torch.testing.assert_close(half, whole / 4)
    for _ in range(3):
        made.step(LATENTS, TEXT)
    assert made.teacher is not None
    for weight, before in zip(made.teacher.parameters(), tiny().parameters(), strict=True):
        assert torch.equal(weight, before) and not weight.requires_grad


def test_new_routers_leave_the_transformer_as_it_is() -> None:
    module, timestep = routed(), torch.tensor([300.0, 700.0])
    velocity, said = module(LATENTS, timestep, TEXT)
    assert torch.equal(velocity, tiny()(LATENTS, timestep, TEXT, return_dict=False)[0])
    assert said.gates.tolist() == [[1.0, 1.0]] * DEPTH == said.widths.tolist()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.transformer.modules())


def one_router(bias: float) -> RoutedTransformer:
    """Return a transformer with one router for all blocks, whose answer is always the same."""
    config = RoutersConfig("WanTransformer3DModel", DEPTH, CHANNELS, 16, (1.0,), rest="reuse")
    routers = Routers(config)
    gate = routers.get_submodule("blocks.0.gate")
    assert len(routers.blocks) == 1 and isinstance(gate, torch.nn.Linear)
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.constant_(gate.bias, bias)
    return RoutedTransformer(tiny(), routers, WAN)


@torch.no_grad()
def test_a_router_is_asked_without_the_blocks() -> None:
    timestep, module = torch.tensor([300.0, 700.0]), one_router(0.4)
    vary(module.routers, 1, 0.1)
    _, said = module(LATENTS, timestep, TEXT, module.added(LATENTS, timestep, TEXT))
    module.stack[1].register_forward_pre_hook(lambda *_: pytest.fail("a block runs"))
    assert torch.equal(module.probabilities(LATENTS, timestep, TEXT), said.probabilities)
    assert said.probabilities.std() > 1e-3 and not module.stack[0]._forward_pre_hooks


@torch.no_grad()
def test_one_sample_at_a_time_may_run_oftener_at_one_timestep() -> None:
    """The loss of a rate that all timesteps have in the mean is small, however far it is at each of them."""
    made, latents, text = trainer(rest="reuse"), LATENTS[:1], TEXT[:1]
    gate = vary(made.routers, 1, 1.0).get_submodule("blocks.0.gate")
    assert isinstance(gate, torch.nn.Linear)
    draws = []
    for made.done in range(100):
        noise, timestep, _ = made.draw(latents)
        draws.append((torch.lerp(latents, noise, timestep / 1000), timestep, text))
    gate.bias -= torch.cat([made.module.probabilities(*draw).logit() for draw in draws]).mean()
    said, losses = [made.module.probabilities(*draw) for draw in draws], []
    mean, variance = torch.cat(said).mean().item(), torch.cat(said).var().item()
    made.recipe = dataclasses.replace(made.recipe, rate=mean)
    for made.done in range(100):
        losses.append(made._step_rate_loss(latents, text, said[made.done], draws[made.done][1]).item())
    assert variance > 1e-3 and sum(losses) / 100 < variance / 4, "an eighth, but for chance"
    # Samples enough need no others.
    many = torch.full((1, 8), 0.25)
    alone = made._step_rate_loss(LATENTS.repeat(4, 1, 1, 1, 1), TEXT.repeat(4, 1, 1), many, torch.full((8,), 500.0))
    assert alone.item() == pytest.approx((0.25 - mean) ** 2)


@torch.no_grad()
def test_all_blocks_rest_together_by_as_much_as_the_router_says() -> None:
    """Against the blocks by hand; what was added at the very same step changes nothing."""
    timestep, before = torch.tensor([300.0, 700.0]), torch.tensor([500.0, 900.0])
    module, stock = one_router(0.4), tiny()(LATENTS, timestep, TEXT)[0]
    earlier = module.added(LATENTS, before, TEXT)
    velocity, said = module(LATENTS, timestep, TEXT, earlier)
    p = torch.tensor(0.4).sigmoid()
    assert said.probabilities.shape == (1, 2) and torch.allclose(said.probabilities, p) and not said.gates.requires_grad
    by_hand, seen = tiny(), {}
    by_hand.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.update(x=inputs[0]))
    by_hand.blocks[-1].register_forward_hook(lambda block, inputs, output: p * output + (1 - p) * (seen["x"] + earlier))
    torch.testing.assert_close(velocity, by_hand(LATENTS, timestep, TEXT)[0])
    assert (velocity - stock).abs().max() > 1e-3
    torch.testing.assert_close(module(LATENTS, timestep, TEXT, module.added(LATENTS, timestep, TEXT))[0], stock)
    torch.testing.assert_close(one_router(20.0)(LATENTS, timestep, TEXT, earlier)[0], stock)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.transformer.modules())


def test_a_router_learns_when_to_reuse(tmp_path: Path) -> None:
    made = trainer(rest="reuse", rate=0.5, distillation=1.0, weight=1.0)
    before = measured(made)
    run(made, 120, decay=True)
    after = measured(made)
    assert before["gates"] == pytest.approx(0.7, abs=0.01) and after["gates"] == pytest.approx(0.5, abs=0.05)
    assert after["loss"] < before["loss"] and not any(p.requires_grad for p in made.transformer.parameters())
    made.save(tmp_path)
    assert read_routers(tmp_path)[0].config == made.routers.config and made.routers.config.rest == "reuse"
    rates = step_rate_loss(torch.tensor([[0.9, 0.3]]), torch.tensor([0.5, 0.5])).item()
    assert rates == pytest.approx(0.01)
    for options in ({"width_rate": 0.5}, {"backbone_rate": 1e-3}):
        with pytest.raises(InputError, match="teaches when all blocks run: leave width_rate and a joint backbone out"):
            Recipe(rest="reuse", **options)
    with pytest.raises(InputError, match="rest of routers is 'reuse', which leaves MLPs whole, and widths are"):
        RoutersConfig("A", 1, 1, rest="reuse")


def test_each_sample_is_decided_by_itself() -> None:
    module, timestep = routed(varied=7), torch.tensor([100.0, 900.0])
    velocity, said = module(LATENTS, timestep, TEXT)
    assert 0 < said.gates.mean() < 1 and (said.gates[:, 0] != said.gates[:, 1]).any()
    for row in range(2):
        alone, one = module(LATENTS[row : row + 1], timestep[row : row + 1], TEXT[row : row + 1])
        assert torch.equal(one.gates[:, 0], said.gates[:, row]) and torch.equal(one.widths[:, 0], said.widths[:, row])
        assert (alone[0] - velocity[row]).abs().max() < 1e-5


def test_training_computes_what_inference_does() -> None:
    """The masks of training and the slices of inference, by the same decisions."""
    pipe, seeds = pipeline("wan-2.1"), (2, 6, 7)
    pipe.scheduler.set_timesteps(5)
    x, t, text = torch.randn(1, 16, 3, 8, 8), pipe.scheduler.timesteps[2:3], embeddings(1)
    kinds = set()
    for seed in seeds:
        routers = wan_routers(varied=seed)
        with torch.no_grad():
            expected, said = RoutedTransformer(pipe.transformer, routers, WAN)(x, t, text)
            with accel.enabled(pipe, None, cache=Routed(routers=routers)) as handle:
                ours = pipe.transformer(x, t, text, return_dict=False)[0]
        assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()
        shares = said.gates[:, 0] * said.widths[:, 0]
        named = ["skipped" if s == 0 else "computed" if s == 1 else "narrow" for s in shares.tolist()]
        assert [record.kind for record in handle.blocks()] == named
        kinds |= set(named)
    assert kinds == {"skipped", "computed", "narrow"}


def test_gradients_of_a_gate_are_what_its_block_adds() -> None:
    """For the last block: d loss / d logit = <d loss / d out, B(x) - x> p (1 - p), whether it runs or not."""
    for varied in range(4):
        module = routed(varied).double()
        states: dict[str, Tensor] = {}
        last: Any = module.transformer.blocks[-1]
        stock = last.forward

        def keep(x: Tensor, *args: Any, stock: Any = stock, states: dict[str, Tensor] = states) -> Tensor:
            states["x"], states["out"] = x, stock(x, *args)
            return states["out"]

        last.forward = keep
        blended = module.transformer.norm_out.register_forward_pre_hook(
            lambda part, inputs, states=states: states.update(y=inputs[0])
        )
        velocity, said = module(LATENTS.double(), torch.tensor([300.0, 700.0]).double(), TEXT.double())
        blended.remove()
        (dy,) = torch.autograd.grad(velocity.square().sum(), states["y"], retain_graph=True)
        (dg,) = torch.autograd.grad(velocity.square().sum(), said.gates, retain_graph=True, allow_unused=True)
        assert dg is None, "the stack is made after the pass"
        bias = module.routers.get_parameter(f"blocks.{DEPTH - 1}.gate.bias")
        (ours,) = torch.autograd.grad(velocity.square().sum(), bias, retain_graph=True)
        p = said.probabilities[-1]
        dy = dy.to(states["x"].dtype)
        worth = ((states["out"] - states["x"]) * dy).sum((1, 2)) * p * (1 - p)
        assert ours.item() == pytest.approx(worth.sum().item(), rel=1e-4)


def test_training_lowers_its_loss_and_meets_the_rate() -> None:
    made = trainer(rate=0.5)
    before = measured(made)
    assert before["gates"] == pytest.approx(1)
    run(made, 60, decay=True)
    after = measured(made)
    assert after["loss"] < 0.9 * before["loss"] and after["gates"] == pytest.approx(0.5, abs=0.05)
    assert not any(parameter.requires_grad for parameter in made.transformer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(tiny().parameters(), made.transformer.parameters(), strict=True))


def test_rates_follow_the_timestep() -> None:
    made = trainer(rate=0.8, low_rate=0.2, shift=1.0, weight=10.0)
    run(made, 250, decay=True)
    late, early = measured(made, 100.0)["gates"], measured(made, 900.0)["gates"]
    assert late == pytest.approx(0.74, abs=0.13) and early == pytest.approx(0.26, abs=0.13)


def test_widths_learn_and_so_does_the_backbone() -> None:
    made = trainer(rate=1.0, width_rate=0.5, backbone_rate=1e-3)
    before = measured(made)
    run(made, 80, decay=True)
    after = measured(made)
    assert before["widths"] == pytest.approx(1) and after["widths"] == pytest.approx(0.5, abs=0.08)
    assert after["error"] < before["error"] and after["loss"] < 0.7 * before["loss"]


JOINT = {"width_rate": 0.5, "backbone_rate": 1e-3, "frozen": ("attn2",)}


@pytest.mark.parametrize("options", [{}, JOINT, {"rest": "reuse"}])
def test_resuming_reproduces_the_next_loss(tmp_path: Path, options: dict[str, Any]) -> None:
    made, joint = trainer(**options), options == JOINT
    run(made, 2)
    made.save(tmp_path)
    expected = run(made, 2)
    again = trainer(**options)
    again.resume(tmp_path)
    assert again.done == 2 and run(again, 2) == expected
    said = again.progress()
    assert said.startswith("step 4 loss ") and " gates " in said and " widths " in said
    routers, backbone = read_routers(tmp_path)
    assert len(routers.config.widths) == (4 if joint else 1)
    frozen = {name for name in dict(made.transformer.named_parameters()) if "attn2" in name} if joint else set()
    assert backbone.keys() == (dict(made.transformer.named_parameters()).keys() - frozen if joint else set())
    start = tiny().state_dict()
    for name, weight in made.transformer.state_dict().items():
        assert torch.equal(weight, start[name]) == (not joint or name in frozen), name


def test_a_seed_is_one_of_all_random_numbers() -> None:
    draws = [trainer(seed=seed).draw(LATENTS) for seed in (0, 1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))


def test_another_setting_is_not_gone_on_with(tmp_path: Path) -> None:
    made = trainer()
    made.setting = {"batch": 2}
    run(made, 1)
    made.save(tmp_path)
    again = trainer()
    again.setting = {"batch": 1}
    with pytest.raises(InputError, match="is of a training with batch 2, not 1; give that"):
        again.resume(tmp_path)


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("renamed", range(4))
def test_being_killed_leaves_what_can_be_loaded(tmp_path: Path, renamed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(backbone_rate=1e-3)
    run(made, 1)
    made.save(tmp_path)
    run(made, 1)
    original, calls = os.replace, []

    def replace(*names: Any) -> None:
        calls.append(names)
        if len(calls) > renamed:
            raise Killed
        original(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        made.save(tmp_path)
    monkeypatch.undo()
    again = trainer(backbone_rate=1e-3)
    again.resume(tmp_path)
    assert again.done == 1 and run(again, 1)
    assert read_routers(tmp_path)[1]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    made = trainer()
    made.save(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    made.routers.get_parameter("blocks.0.gate.bias").data.fill_(torch.nan)
    with pytest.raises(ValueError, match="weights are not finite at step 0; start again at a lower learning rate"):
        made.save(tmp_path)
    with pytest.raises(ValueError, match="the loss is nan at step 1; give a lower learning rate"):
        made.step(LATENTS, TEXT)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_what_cannot_be_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint.pt' cannot be gone on from: .*; start without resuming"):
        trainer().resume(tmp_path)
    trainer().save(tmp_path)
    with pytest.raises(InputError, match="is of a training with rate 0.6, not 0.5; give that"):
        trainer(rate=0.5).resume(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be gone on from"):
        trainer().resume(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate is 0; give a share above 0, and at most 1"),
        ({"low_rate": 1.5}, "low_rate is 1.5; give a share above 0, and at most 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1; it must be 0 or more, and finite"),
        ({"width_rate": 0.5}, "width_rate is 0.5 with a frozen backbone, whose neurons are in no order: train the"),
    ],
)
def test_bad_recipes(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**options)  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [learning_rate_factor(done) for done in (0.0, 0.03, 0.5, 0.8, 1.0)]
    assert 0 < shares[0] < 0.1 and shares[1] == shares[2] == 1 and shares[3] == pytest.approx(0.5) and shares[4] == 0


def test_another_training_starts_from_the_routers_and_backbone_of_one(tmp_path: Path) -> None:
    first = trainer(backbone_rate=1e-3, frozen=("attn2",), distillation=1.0)
    run(first, 3)
    first.save(tmp_path)
    second = trainer(backbone_rate=1e-3, frozen=("attn2",), distillation=1.0, seed=1)
    second.start_from(tmp_path)
    assert second.done == 0 and second.teacher is not None
    for mine, other in ((second.routers, first.routers), (second.transformer, first.transformer)):
        assert all(map(torch.equal, mine.state_dict().values(), other.state_dict().values()))
    assert all(map(torch.equal, second.teacher.state_dict().values(), tiny().state_dict().values()))
    with pytest.raises(InputError, match="do not fit: it tunes .*, which stays as it is here"):
        trainer().start_from(tmp_path)
    with pytest.raises(InputError, match="of another model"):
        trainer(backbone_rate=1e-3, width_rate=0.5).start_from(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(made),)

    torch.save({"step": 1, "recipe": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="cannot be gone on from"):
        trainer().resume(tmp_path)
    assert not made.exists()


def test_a_numbered_gpu_is_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []

    def stop(**options: Any) -> Any:
        raise ValueError(f"stop {options}")

    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(training, "Accelerator", stop)
    for device in ("cuda:1", "cuda", "cpu"):
        with pytest.raises(InputError, match=f"'cpu': {device == 'cpu'}"):
            RouterTrainer(tiny(), WAN, Recipe(), device)
    assert chosen == [torch.device("cuda:1")]

"""Routers as folders: what comes back, whose weights are in the transformer when, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file, save_file

import accel
from accel.attach import adapter_for
from accel.errors import InputError
from accel.routing.folder import read_routers, save_routers
from accel.routing.policy import Routed
from tests.accel.routing.made import wan_routers
from tests.accel.wan_models import generate, pipeline

NAME = "blocks.1.ffn.net.2.weight"


@pytest.mark.parametrize("variant", ["published", "shared"])
def test_what_is_saved_comes_back(tmp_path: Path, variant: str) -> None:
    routers = wan_routers(variant, varied=3)
    save_routers(routers, tmp_path / "routers")
    save_routers(routers, tmp_path / "routers")
    assert sorted(path.name for path in (tmp_path / "routers").iterdir()) == ["config.json", "routers.safetensors"]
    again, backbone = read_routers(tmp_path / "routers")
    assert again.config == routers.config and not backbone and not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in routers.state_dict().items())
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, None, cache=Routed(routers=routers)):
        expected = generate(pipe)
    for cache in (accel.load_routers(pipe, tmp_path / "routers"), f"routers:path={tmp_path / 'routers'}"):
        with accel.enabled(pipe, "svg-ear", cache=cache, dense_steps=1) as handle:
            assert (generate(pipe) - expected).abs().max() < 2e-5 * expected.abs().max()
            assert "Routed" in handle.summary()
    assert accel.load_routers(pipe.transformer, tmp_path / "routers", margin=0.1).margin == 0.1


def test_tuned_weights_are_in_while_routers_are_attached(tmp_path: Path) -> None:
    pipe, tuned = pipeline("wan-2.1"), pipeline("wan-2.1")
    stock, weight = generate(pipe), tuned.transformer.get_parameter(NAME)
    weight.data.mul_(1.5)
    save_routers(wan_routers(), tmp_path, {NAME: weight})
    policy = accel.load_routers(pipe, tmp_path)
    assert torch.equal(generate(pipe), stock), "reading changes nothing"
    expected = generate(tuned)
    with accel.enabled(pipe, None, cache=policy):
        assert torch.equal(generate(pipe), expected)
        with accel.enabled(pipe, None, cache="easy:warmup=5"):
            assert torch.equal(generate(pipe), stock), "another cache has the transformer's own weights"
        assert torch.equal(generate(pipe), expected)
        accel.enable(pipe, None, cache=policy)
        assert torch.equal(generate(pipe), expected)
    accel.disable(pipe)
    assert torch.equal(generate(pipe), stock)
    save_routers(wan_routers(), tmp_path)
    assert not accel.load_routers(pipe, tmp_path).weights, "those of before are gone"


def test_folders_of_before_rests_were_said_are_read(tmp_path: Path) -> None:
    save_routers(wan_routers(), tmp_path)
    break_config(tmp_path, lambda fields: {name: value for name, value in fields.items() if name != "rest"})
    assert read_routers(tmp_path)[0].config.rest == "skip"


def break_config(folder: Path, change: Callable[[dict], object]) -> None:
    fields = json.loads((folder / "config.json").read_text())
    made = change(fields)
    (folder / "config.json").write_text(json.dumps(fields if made is None else made))


def change_tensors(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / "routers.safetensors")
    change(tensors)
    save_file(tensors, folder / "routers.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: (f / "config.json").unlink(), "holds no routers: it has no config.json; give a"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is no configuration of routers"),
    "a list": (lambda f: break_config(f, lambda fields: [1]), "it must hold model, depth, channels, hidden, widths"),
    "another rest": (lambda f: break_config(f, lambda fields: fields.update(rest="sleep")), "'sleep'; accepted: skip"),
    "another key": (lambda f: break_config(f, lambda fields: fields.update(a=1)), "it must hold model, depth"),
    "a word": (lambda f: break_config(f, lambda fields: fields.update(depth="two")), "is no configuration of routers"),
    "bad widths": (lambda f: break_config(f, lambda fields: fields.update(widths=3)), "is no configuration of routers"),
    "cut off": (lambda f: (f / "routers.safetensors").write_bytes(b"\x08"), "is no safetensors file"),
    "missing": (lambda f: (f / "routers.safetensors").unlink(), "is no safetensors file"),
    "a pickle": (lambda f: (f / "routers.safetensors").write_bytes(pickle.dumps({"a": 1})), "is no safetensors file"),
    "a torch file": (lambda f: torch.save({"a": torch.ones(1)}, f / "routers.safetensors"), "is no safetensors file"),
    "a key less": (lambda f: change_tensors(f, lambda t: t.pop("blocks.0.gate.bias")), "0.gate.bias is missing"),
    "a key more": (lambda f: change_tensors(f, lambda t: t.update(a=torch.ones(1))), "is foreign: a is .1,., in its"),
    "another shape": (
        lambda f: change_tensors(f, lambda t: t.update({"blocks.0.gate.bias": torch.ones(2)})), "gate.bias is .2,., in"
    ),
    "not finite": (
        lambda f: change_tensors(f, lambda t: t["blocks.0.gate.bias"].fill_(torch.nan)), "blocks.0.gate.bias in .* NaN"
    ),
    "a bad backbone": (lambda f: (f / "backbone.safetensors").write_bytes(b"no"), "backbone.safetensors' is no safe"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_broken_folders(tmp_path: Path, how: str) -> None:
    breaks, message = BROKEN[how]
    save_routers(wan_routers(), tmp_path)
    breaks(tmp_path)
    pipe = pipeline("wan-2.1")
    with pytest.raises(InputError, match=message):
        accel.load_routers(pipe, tmp_path)
    with pytest.raises(InputError, match=message):
        accel.enable(pipe, None, cache=f"routers:path={tmp_path}")
    assert not hasattr(pipe.transformer, "_diffusers_hook"), "nothing was attached"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "FluxTransformer2DModel"},
            "the routers are of a FluxTransformer2DModel with 2 blocks of 64 channels",
        ),
        ({"name": "blocks.7.weight"}, "a tuned weight blocks.7.weight is .1,., and this .* has none of that name"),
        ({"name": NAME}, "a tuned weight blocks.1.ffn.net.2.weight is .1,., and this .* has .64, 64."),
    ],
)
def test_folders_of_another_model(tmp_path: Path, change: dict[str, str], message: str) -> None:
    save_routers(wan_routers(), tmp_path, {change["name"]: torch.ones(1)} if "name" in change else None)
    if "model" in change:
        break_config(tmp_path, lambda fields: fields.update(change))
    pipe = pipeline("wan-2.1")
    with pytest.raises(InputError, match=message):
        accel.load_routers(pipe, tmp_path)
    with pytest.raises(InputError, match=message):
        accel.enable(pipe, None, cache=f"routers:path={tmp_path}")
    assert not hasattr(pipe.transformer, "_diffusers_hook"), "nothing was attached"


@pytest.mark.parametrize("offload_first", [True, False])
def test_tuned_weights_beside_offloading_to_files(tmp_path: Path, offload_first: bool) -> None:
    pipe, tuned, cpu = pipeline("wan-2.1"), pipeline("wan-2.1"), torch.device("cpu")
    weight = tuned.transformer.get_parameter(NAME)
    weight.data.mul_(1.5)
    expected = generate(tuned)
    save_routers(wan_routers(), tmp_path / "routers", {NAME: weight})
    policy, where = accel.load_routers(pipe, tmp_path / "routers", widths=False), str(tmp_path / "disk")

    def offload() -> None:
        apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=where)

    if offload_first:
        offload()
        with pytest.raises(InputError, match="whose own are offloaded to files; offload to memory, or leave the"):
            accel.enable(pipe, None, cache=policy)
        return
    accel.enable(pipe, None, cache=policy)
    offload()
    assert (generate(pipe) - expected).abs().max() < 2e-5 * expected.abs().max()
    with pytest.warns(UserWarning, match="while it had tuned weights, which the files keep; load it anew"):
        accel.disable(pipe)


def test_what_is_fused_into_a_tuned_weight_stays(tmp_path: Path) -> None:
    pipe = pipeline("wan-2.1")
    weight = pipe.transformer.get_parameter(NAME)
    own, added = weight.detach().clone(), torch.randn_like(weight)
    save_routers(wan_routers(), tmp_path, {NAME: 1.5 * own})
    with accel.enabled(pipe, None, cache=accel.load_routers(pipe, tmp_path)):
        weight.data.add_(added)
    assert (weight - (own + added)).abs().max() < 1e-5
    weight.data.copy_(own)
    with accel.enabled(pipe, None, cache=accel.load_routers(pipe, tmp_path)):
        assert not torch.equal(weight, own)
    assert torch.equal(weight, own), "exactly, where nothing was added"


def test_own_weights_come_back_exactly_after_another_dtype(tmp_path: Path) -> None:
    pipe = pipeline("wan-2.1")
    pipe.transformer.bfloat16()
    weight = pipe.transformer.get_parameter(NAME)
    own = weight.detach().clone()
    save_routers(wan_routers(), tmp_path, {NAME: own.float() + 0.01 * torch.randn(own.shape)})
    with accel.enabled(pipe, None, cache=accel.load_routers(pipe, tmp_path)):
        pipe.transformer.float()
    assert torch.equal(weight, own.float())


@pytest.mark.parametrize(("broken", "at"), [("clone", 2), ("copy_", 2), ("clone", 4)])
def test_an_error_while_tuned_weights_are_put_in_leaves_what_was_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, at: int
) -> None:
    """Two weights in each of two transformers: it comes at the second one of the first or of the second transformer."""
    pipe = pipeline("wan-2.2")
    names = NAME, "blocks.0.ffn.net.2.weight"
    stock, own = generate(pipe), {name: pipe.transformer.get_parameter(name).clone() for name in names}
    save_routers(wan_routers(), tmp_path, {name: 1.5 * weight for name, weight in own.items()})
    policy, handle = accel.load_routers(pipe, tmp_path), accel.enable(pipe, None, cache="table:every=2:warmup=1")
    before, calls, original = generate(pipe), [0], getattr(torch.Tensor, broken)

    def breaking(tensor: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        calls[0] += isinstance(tensor, torch.nn.Parameter)
        if calls[0] == at:
            calls[0] += 1
            raise KeyboardInterrupt
        return original(tensor, *given, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.Tensor, broken, breaking)
        accel.enable(pipe, None, cache=policy)
    assert all(torch.equal(pipe.transformer.get_parameter(name), weight) for name, weight in own.items())
    assert torch.equal(generate(pipe), before) and "reused" in {record.kind for record in handle.blocks()}
    with accel.enabled(pipe, None, cache=policy):
        assert not torch.equal(pipe.transformer.get_parameter(NAME), own[NAME])
    accel.disable(pipe)
    assert torch.equal(generate(pipe), stock)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10**9}, "is of 1000000000 routers, and there are .* tensors"),
        ({"hidden": 10**12}, "is foreign|sizes that no tensor can have"),
        ({"hidden": 10**30}, "sizes that no tensor can have|is foreign|is no configuration"),
    ],
)
def test_sizes_that_nobody_has_memory_for(tmp_path: Path, change: dict[str, int], message: str) -> None:
    save_routers(wan_routers(), tmp_path)
    break_config(tmp_path, lambda fields: fields.update(change))
    with pytest.raises(InputError, match=message):
        read_routers(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is no configuration of routers"):
        read_routers(tmp_path)


def test_models_without_blocks_that_routers_fit() -> None:
    with pytest.raises(InputError, match="routers do not fit Animate.*, they are for Wan; take another cache"):
        adapter = replace(adapter_for(pipeline("wan-2.1").transformer), blocks=None)
        Routed(routers=wan_routers()).check(type("Animate", (torch.nn.Module,), {})(), adapter)

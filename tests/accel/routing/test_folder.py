"""Routers as folders: what comes back, whose weights are in the transformer when, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import accel
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

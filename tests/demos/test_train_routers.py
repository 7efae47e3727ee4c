"""Routers for the shipped model: a few steps on drawn videos, and a generation with what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from accelerate.state import AcceleratorState

import accel
from accel.workbench.loading import load_pipeline
from demos.shapes_wan import train_routers


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers its precision for as long as a process lives."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_training_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(typer.BadParameter, match="holds a training already; give --resume to go on, or another"):
        train_routers.main(tmp_path)


def test_routers_are_not_written_over(tmp_path: Path) -> None:
    """As those are that ship, which lie there without a checkpoint."""
    (tmp_path / "routers.safetensors").touch()
    with pytest.raises(typer.BadParameter, match="holds routers already, which would be replaced; move routers.safe"):
        train_routers.main(tmp_path)


def test_nothing_is_written_without_a_step(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(done=5, transformer=SimpleNamespace(rope=None), teacher=None)
    unused: Any = None
    with pytest.raises(ValueError, match="no step was made: 0 seconds were left for it; give more --minutes"):
        train_routers.train(trainer, unused, unused, unused, tmp_path, 1, 0.0, -3.0)


def test_going_on_draws_other_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Trainer:
        done, transformer, teacher = 0, None, None

        def __init__(self, *given: Any) -> None:
            self.setting: dict[str, Any] = {}

        def resume(self, folder: Path) -> None:
            self.done = 7

    def stop(order: Any, *rest: Any) -> Any:
        seeds.append(order.seed)
        raise InterruptedError

    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(train_routers, "RouterTrainer", Trainer)
    monkeypatch.setattr(train_routers, "Stream", stop)
    for resume in (False, True):
        with pytest.raises(InterruptedError):
            train_routers.main(tmp_path, resume=resume)
    assert seeds == [0, 7]


# Torch says that a norm with float32 weights has no fast path for bfloat16; that is so in training.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.slow
def test_smoke(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_routers.main(tmp_path, smoke=True, joint=1e-4, alone=1, width_rate=0.7)
    said = capfd.readouterr().out
    assert "step 2 loss " in said and "routers of 2 steps" in said
    assert float(said.partition(" error ")[2].split()[0]) < 0.02, "at first all blocks run: the teacher says the same"
    train_routers.main(tmp_path, smoke=True, joint=1e-4, alone=1, width_rate=0.7, resume=True)
    assert "routers of 4 steps" in capfd.readouterr().out
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size < 16 * 2**20, "the backbone is in float16"
    loaded = load_pipeline(None, "cpu", "float32")
    call = loaded.defaults | {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 2}
    random = torch.Generator().manual_seed(0)
    with accel.enabled(loaded.pipeline, None, cache=accel.load_routers(loaded.pipeline, tmp_path)) as handle:
        made = loaded.pipeline("a red circle moves left", **call, output_type="latent", generator=random).frames
        assert torch.as_tensor(made).isfinite().all() and handle.blocks()

"""Training goes on where it stopped, evaluation counts right, and both are commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("spconv.pytorch")

from pointcloud.cli import app  # noqa: E402
from pointcloud.nn import unroll  # noqa: E402
from pointcloud.spikepoint import SpikePoint, tiny, training  # noqa: E402
from pointcloud.spikepoint.evaluation import Accuracy, evaluate, write_results  # noqa: E402
from pointcloud.spikepoint.patterns import CLASSES  # noqa: E402
from pointcloud.spikepoint.shipped import load_events_network  # noqa: E402
from pointcloud.spikepoint.training import Trainer, half_cosine, train, voting_loss  # noqa: E402

SIZES = {"widths": (4, 6, 8, 10), "points": 24, "groups": 6, "neighbors": 4, "steps": 2, "votes": 2}
SMALL = tiny(CLASSES, **SIZES, coding="rate", neuron="lif")


def same_weights(one: SpikePoint, other: SpikePoint) -> bool:
    """Whether all of two networks' state is the same."""
    return all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    first = train(tmp_path / "parts", SMALL, 2, 6, workers=0, every=1, report=said.append)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["checkpoint.pt", "events.safetensors"]
    assert same_weights(SpikePoint.load(tmp_path / "parts" / "events.safetensors", CLASSES), first)
    # As if the first call had been stopped: the learning rate is that of the whole run.
    trainer = Trainer(SMALL)
    trainer.resume(tmp_path / "parts")
    assert trainer.done == 2 and same_weights(trainer.network, first)
    second = train(tmp_path / "parts", SMALL, 3, 6, workers=0, every=1, report=said.append)
    assert [line.split()[:2] for line in said] == [["step", "1"], ["step", "2"], ["step", "3"]]
    assert not same_weights(first, second) and not second.training
    (tmp_path / "parts" / "events.safetensors").unlink()
    assert same_weights(train(tmp_path / "parts", SMALL, 3, 6, workers=0), second)  # there is nothing left to do
    assert same_weights(SpikePoint.load(tmp_path / "parts" / "events.safetensors"), second)
    with pytest.raises(ValueError, match="another configuration or seed; give another output folder"):
        Trainer(SMALL, seed=1).resume(tmp_path / "parts")


def test_a_stop_changes_neither_optimizer_nor_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the cosine a run of two steps would learn at other rates than the first two of four.
    monkeypatch.setattr(training, "half_cosine", lambda step, steps: 1.0)
    said: dict[str, list[str]] = {"whole": [], "parts": []}
    whole = train(tmp_path / "whole", SMALL, 4, 6, workers=0, every=1, report=said["whole"].append)
    for steps in (2, 4):
        parts = train(tmp_path / "parts", SMALL, steps, 6, workers=0, every=1, report=said["parts"].append)
    lines = [[line.split()[:-2] for line in lines] for lines in said.values()]  # without their seconds
    assert lines[0] == lines[1] and same_weights(whole, parts)


def test_no_checkpoint_is_ahead_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "events.safetensors").mkdir()
    with pytest.raises(OSError):
        Trainer(SMALL).save(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_seed_makes_the_same_weights_again(tmp_path: Path) -> None:
    one, same, other = (
        train(tmp_path / name, SMALL, 2, 6, seed=seed, workers=0, report=lambda _: None)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert same_weights(one, same) and not same_weights(one, other)


def test_training_learns() -> None:
    trainer = Trainer(tiny(CLASSES[:2], **{**SIZES, "widths": (8, 12, 16, 24)}))
    generator = torch.Generator().manual_seed(0)
    clouds, labels = torch.rand(16, 24, 3, generator=generator), torch.arange(16) % 2
    clouds[..., 0] = clouds[..., 0] * 0.3 + 0.6 * labels[:, None]
    losses = [trainer.step((clouds, labels), 1e-2)["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        trainer.network.head[1].norm.weight.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue]
    trainer.network.head[1].activation = torch.nn.ReLU()
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match="the loss is nan at step 41"):
        trainer.step((clouds, labels), 1e-2)
    torch.testing.assert_close(dict(trainer.network.state_dict()), before, rtol=0, atol=0, equal_nan=True)


def test_loss_and_learning_rate_by_hand() -> None:
    votes = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    assert voting_loss(votes, torch.tensor([0])).item() == pytest.approx((0 + 0 + 0.25 + 0.25) / 4)
    assert half_cosine(25, 1000) == pytest.approx(0.5, rel=0.01) and half_cosine(1000, 1000) == 0


def test_evaluation_counts_windows_by_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    said: list[str] = []
    result = evaluate(SpikePoint(SMALL).eval(), 8, report=said.append)
    assert result.confusion.sum(1).tolist() == [3] * 8 and said == ["24 windows"] and result.nanojoules > 0
    counted = Accuracy(("a", "b"), torch.tensor([[3, 1], [0, 4]]), 5.0)
    assert counted.accuracy == pytest.approx(7 / 8) and counted.recalls == {"a": 0.75, "b": 1}
    files = write_results(counted, tmp_path / "out", model="x")
    told = json.loads(files[1].read_text())
    assert told["accuracy"] == pytest.approx(7 / 8) and told["model"] == "x" and files[0].stat().st_size > 1000
    with pytest.raises(ValueError, match="this network tells a, b apart, the recordings show left"):
        evaluate(SpikePoint(tiny("ab", **SIZES)), 8)


def test_a_class_without_windows_has_no_share(tmp_path: Path) -> None:
    counted = Accuracy(("a", "b"), torch.tensor([[3, 1], [0, 0]]), 5.0)
    assert counted.recalls == {"a": 0.75, "b": None}
    numbers = write_results(counted, tmp_path)[1].read_text()
    assert json.loads(numbers)["classes"] == {"a": 0.75, "b": None} and "NaN" not in numbers
    model, output = tmp_path / "model.safetensors", tmp_path / "out"
    SpikePoint(SMALL).save(model)
    result = CliRunner().invoke(app, ["evaluate", "events", str(model), "--recordings", "1", "--output", str(output)])
    assert result.exit_code == 0 and "right: no windows" in result.stdout and "nan" not in result.stdout, result.output


def test_commands_end_with_one_line_on_bad_input(tmp_path: Path) -> None:
    for arguments, line in (
        (["train", "events", "--output", str(tmp_path / "a"), "--size", "huge"], "unknown size 'huge'; accepted: tiny"),
        (["train", "events", "--output", str(tmp_path / "a"), "--coding", "phase"], "accepted: rate, latency, direct"),
        (["train", "events", "--output", str(tmp_path / "a"), "--batch", "10"], "batch must be a multiple of 3"),
        (["evaluate", "events", "none"], "unknown model 'none'; shipped: spikepoint-tiny"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and line in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()
    model = tmp_path / "relu.safetensors"
    SpikePoint(tiny(CLASSES, **SIZES, spiking=False)).save(model)
    result = CliRunner().invoke(app, ["evaluate", "events", str(model), "--spikes"])
    assert result.exit_code == 2 and f"{model} does not spike; leave --spikes out" in result.stderr


def test_the_shipped_network_knows_recordings_that_it_never_saw() -> None:
    network = load_events_network("spikepoint-tiny")
    assert network.config == tiny(CLASSES)
    assert evaluate(network, 16, report=lambda _: None).accuracy > 0.85
    clouds = torch.rand(5, network.config.points, 3, generator=torch.Generator().manual_seed(0))
    integers = network.double()(clouds)
    assert (unroll(network)(clouds).mean(0) - integers[0]).abs().max() < 1e-10

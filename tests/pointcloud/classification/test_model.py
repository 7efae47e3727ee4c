"""Models from clouds to logits: invariances, spikes, files, training that goes on, evaluation."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("spconv.pytorch", exc_type=ImportError)
pytest.importorskip("open3d", exc_type=ImportError)

from safetensors.torch import save_file

from pointcloud.classification import SEGMENTS_TINY, SHAPES_TINY, CloudModel, Confusion, ModelConfig
from pointcloud.classification.evaluation import evaluate, write_results
from pointcloud.classification.model import in_unit_ball
from pointcloud.classification.training import Trainer, collate, train
from pointcloud.detection.shipped import SAMPLE
from pointcloud.files import read_points
from pointcloud.nn import unroll
from pointcloud.points import PointCloud
from pointcloud.shapes import ShapeClouds
from tests.pointcloud.classification.tiny_models import tiny_config, tiny_model

TASKS = ("shapes", "segments")


def samples(task, count: int = 3):
    return list(ShapeClouds(task, "evaluation", count))


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_gives_what_each_cloud_gives_alone_wherever_it_lies(task: str, levels: int) -> None:
    model, clouds = tiny_model(task, levels), samples(task)
    batch = collate(clouds)
    with torch.no_grad():
        together = model(batch.xyz, batch.batch, batch.size).softmax(1)
    assert len(together) == (len(clouds) if task == "shapes" else len(batch.xyz)) == len(batch.labels)
    alone = torch.cat([model.predict(sample.cloud) for sample in clouds])
    assert torch.allclose(together, alone, atol=1e-5)
    scaled = torch.cat([model.predict(PointCloud(4 * sample.cloud.xyz)) for sample in clouds])
    assert torch.allclose(scaled, alone, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_integers_and_spikes_give_the_same_logits(task: str) -> None:
    model, batch = tiny_model(task).double(), collate(samples(task))
    model.train()(batch.xyz.double(), batch.batch, batch.size)  # running statistics that are not 0 and 1
    with torch.no_grad():
        integers, spikes = (
            unroll(model.eval(), unrolled)(batch.xyz.double(), batch.batch, batch.size) for unrolled in (False, True)
        )
    assert integers.std() > 0 and torch.allclose(spikes, integers, atol=1e-10, rtol=0)


def test_clouds_are_put_into_the_unit_ball() -> None:
    xyz = torch.tensor([[10.0, 0, 0], [14, 0, 0], [5, 5, 5], [-1, -1, -1], [1, 1, 1]])
    placed = in_unit_ball(xyz, torch.tensor([0, 0, 1, 2, 2]), 3)
    assert torch.allclose(placed[:2, 0], torch.tensor([-1.0, 1.0]), atol=2e-4) and placed[2].abs().max() == 0
    assert (placed.norm(dim=1) < 1).all()
    with pytest.raises(ValueError, match=r"every one of the 4 clouds must have a point; they have \[2, 1, 2, 0\]"):
        in_unit_ball(xyz, torch.tensor([0, 0, 1, 2, 2]), 4)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_gives_the_model_back(task: str, tmp_path: Path) -> None:
    model = tiny_model(task)
    model.save(tmp_path / "model.safetensors")
    again = CloudModel.load(tmp_path / "model.safetensors")
    assert again.config == model.config and again.fingerprint() == model.fingerprint()
    cloud = samples(task, 1)[0].cloud
    assert torch.equal(again.predict(cloud), model.predict(cloud))


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CloudModel.load(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="no safetensors file"):
        CloudModel.load(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="is of another network"):
        CloudModel.load(SAMPLE.with_name("dsvt-tiny.safetensors"))
    for text, message in (("{}", "no configuration of a classifier"), (tiny_config("shapes").to_json(), "weights of")):
        save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {"classification": text})
        with pytest.raises(ValueError, match=message):
            CloudModel.load(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="10 classes does not fit 6 values and 2 names"):
        ModelConfig(("one", "two"), SHAPES_TINY.network)


@pytest.mark.parametrize("config", [SHAPES_TINY, SEGMENTS_TINY])
def test_configurations_survive_json_and_stay_small(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.without_spikes().network.levels == 0
    assert 4 * sum(weight.numel() for weight in CloudModel(config).parameters()) < 8e6


@pytest.mark.parametrize("task", TASKS)
def test_training_that_goes_on_makes_the_same_next_step(task: str, tmp_path: Path) -> None:
    said: list[str] = []
    options = dict(batch=4, workers=0, every=1, report=said.append)
    whole = train(tmp_path / "whole", tiny_config(task), 3, **options)
    assert (tmp_path / "whole" / "checkpoint.pt").is_file() and len(said) == 3
    trainer = Trainer(tiny_config(task))
    trainer.resume(tmp_path / "whole")
    batches = [collate(list(ShapeClouds(task, "training", 4, first))) for first in (12, 16)]
    losses = [trainer.step(batches[0], 1e-3), trainer.step(batches[1], 1e-3)]
    again = Trainer(tiny_config(task))
    again.resume(tmp_path / "whole")
    first = again.step(batches[0], 1e-3)
    again.save(tmp_path / "half")
    later = Trainer(tiny_config(task))
    later.resume(tmp_path / "half")
    assert [first, later.step(batches[1], 1e-3)] == losses and later.done == 5
    (tmp_path / "whole" / "model.safetensors").unlink()
    more = train(tmp_path / "whole", tiny_config(task), 3, **options)  # nothing is left to do
    assert len(said) == 3 and more.fingerprint() == whole.fingerprint()
    assert CloudModel.load(tmp_path / "whole" / "model.safetensors").fingerprint() == whole.fingerprint()


def test_no_checkpoint_is_ahead_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError):
        Trainer(tiny_config("shapes")).save(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_training_refuses_another_network_classes_and_seed(tmp_path: Path) -> None:
    train(tmp_path, tiny_config("shapes"), 1, 2, workers=0, report=lambda line: None)
    renamed = dataclasses.replace(tiny_config("shapes"), classes=tuple("abcdefghij"))
    for config, seed in ((tiny_config("shapes", 0), 0), (renamed, 0), (tiny_config("shapes"), 1)):
        with pytest.raises(ValueError, match="of another network, other classes or another seed"):
            train(tmp_path, config, 2, 2, seed=seed, workers=0)
    trainer = Trainer(tiny_config("shapes"))
    batch = collate(samples("shapes", 2))
    with torch.no_grad():
        trainer.model.network.head.bias.fill_(torch.inf)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="at step 1; start again at a lower learning rate"):
        trainer.step(batch, 1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_training_without_open3d_ends_before_any_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r"^\.ply and \.pcd need open3d"):
        train(tmp_path, tiny_config("shapes"), 1, 2, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_few_steps_learn_a_batch() -> None:
    trainer, batch = Trainer(tiny_config("shapes")), collate(samples("shapes", 8))
    first = trainer.step(batch, 1e-2)[0]
    last = [trainer.step(batch, 1e-2)[0] for _ in range(25)][-1]
    assert last < 0.6 * first


def test_confusion_is_that_of_a_hand_count() -> None:
    true, predicted = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
    confusion = Confusion.of(("a", "b", "c"), true, predicted)
    assert confusion.counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]] and confusion.accuracy == pytest.approx(0.6)
    assert confusion.overlaps[:2].tolist() == pytest.approx([2 / 4, 1 / 3]) and confusion.overlaps[2].isnan()
    assert confusion.mean_overlap == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert (confusion + confusion).counts.sum() == 10 and confusion.accuracies[0] == pytest.approx(2 / 3)
    ignored = torch.tensor([-1, 0, -1]), torch.tensor([2, 0, 1])
    assert Confusion.of(("a", "b", "c"), *ignored).counts.sum() == 1
    with pytest.raises(ValueError, match="2 classes need a square of counts"):
        Confusion(("a", "b"), confusion.counts)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_counts_every_row_and_writes_it(task: str, tmp_path: Path) -> None:
    clouds, model = samples(task, 4), tiny_model(task)
    confusion = evaluate(model, iter(clouds))
    rows = 4 if task == "shapes" else sum(len(sample.cloud) for sample in clouds)
    assert confusion.counts.sum() == rows
    picture, numbers = write_results(confusion, tmp_path / "results", model="tiny")
    record = json.loads(numbers.read_text())
    assert record["accuracy"] == pytest.approx(confusion.accuracy) and record["model"] == "tiny"
    assert sum(sum(row["counts"]) for row in record["classes"].values()) == rows and picture.stat().st_size > 5000
    with pytest.raises(ValueError, match="no cloud to evaluate on"):
        evaluate(model, [])


def test_a_scan_of_a_street_goes_through_both() -> None:
    cloud = read_points(SAMPLE)
    for task, rows in (("shapes", 1), ("segments", len(cloud))):
        probabilities = tiny_model(task).predict(cloud)
        assert len(probabilities) == rows and torch.allclose(probabilities.sum(1), torch.ones(rows), atol=1e-4)

"""How well a model does on clouds it was not trained on, as numbers, JSON and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from pointcloud.classification.confusion import Confusion
from pointcloud.classification.model import CloudModel
from pointcloud.classification.pictures import draw_confusion
from pointcloud.detection.records import write_json
from pointcloud.shapes import Sample


def evaluate(model: CloudModel, samples: Iterable[Sample], each: Callable[[], None] | None = None) -> Confusion:
    """Return which classes the clouds, or with a segmenter their points, are taken for; `each` is called after each.

    ValueError if there is no cloud.
    """
    total: Confusion | None = None
    for sample in samples:
        predicted = model.predict(sample.cloud).argmax(1).cpu()
        true = torch.tensor([sample.label]) if model.config.task == "shapes" else sample.cloud.attributes["label"]
        counted = Confusion.of(model.config.classes, true, predicted)
        total = counted if total is None else total + counted
        if each is not None:
            each()
    if total is None:
        raise ValueError("there is no cloud to evaluate on; give one or more")
    return total


def write_results(confusion: Confusion, folder: Path, **about: Any) -> list[Path]:
    """Write `results.json` (accuracy, overlaps, counts and whatever else is given) and `confusion.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / "confusion.png", folder / "results.json"
    draw_confusion(confusion, picture)
    rows = {
        name: {"accuracy": _number(accuracy), "overlap": _number(overlap), "counts": counts}
        for name, accuracy, overlap, counts in zip(
            confusion.classes,
            confusion.accuracies.tolist(),
            confusion.overlaps.tolist(),
            confusion.counts.tolist(),
            strict=True,
        )
    }
    whole = {"accuracy": confusion.accuracy, "mean_overlap": confusion.mean_overlap}
    write_json(numbers, {**about, **whole, "classes": rows})
    return [picture, numbers]


def _number(value: float) -> float | None:
    return value if value == value else None  # JSON knows no NaN

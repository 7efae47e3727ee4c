"""Average precision of a detector on scenes, as numbers, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointcloud.boxes import PrecisionRecall, average_precision
from pointcloud.detection.detects import Detects
from pointcloud.files import replacing
from pointcloud.scenes import Scene


@dataclass(frozen=True)
class ClassResult:
    """How well one class is found; `truths` counts the boxes that were to be found."""

    truths: int
    curve: PrecisionRecall


def evaluate(
    detector: Detects, scenes: Iterable[Scene], iou: float = 0.5, threshold: float | None = None
) -> dict[str, ClassResult]:
    """Return for each class how its boxes are found on scenes, which are gone through once.

    A detection is right if it overlaps a true box by `iou`, seen from above. Boxes with too few points are ignored:
    to find one is neither right nor wrong. Detections below `threshold` (by default the model's) are left out.
    """
    classes = detector.config.head.classes
    predictions, truths = ([[] for _ in classes] for _ in range(2))
    for scene in scenes:
        found = detector.detect(scene.cloud, threshold).cpu()
        for label in range(len(classes)):
            own, true = found.labels == label, scene.classes == label
            predictions[label].append((found.boxes[own], found.scores[own]))
            truths[label].append((scene.boxes[true], ~scene.visible[true]))
    return {
        name: ClassResult(
            sum(int((~ignored).sum()) for _, ignored in truths[label]),
            average_precision(predictions[label], truths[label], iou),
        )
        for label, name in enumerate(classes)
    }


def write_results(results: dict[str, ClassResult], folder: Path, **about: Any) -> list[Path]:
    """Write `results.json` (average precisions and whatever else is given) and `precision_recall.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / "precision_recall.png", folder / "results.json"
    draw_curves(results, picture)
    rows = {name: _row(result) for name, result in results.items()}
    with replacing(numbers) as temporary:
        temporary.write_text(json.dumps({**about, "classes": rows}, indent=2) + "\n")
    return [picture, numbers]


def _row(result: ClassResult) -> dict[str, float | int | None]:
    curve, found = result.curve, len(result.curve.scores) > 0
    return {
        "average_precision": curve.average_precision if result.truths else None,
        "truths": result.truths,
        "detections": len(curve.scores),
        "recall": float(curve.recall[-1]) if found else 0.0,
    }


def draw_curves(results: dict[str, ClassResult], path: Path) -> None:
    """Draw precision over recall of all classes as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for name, result in results.items():
        curve = result.curve
        axes.plot(curve.recall, curve.precision, label=f"{name} {curve.average_precision:.2f}")
    axes.legend(title="average precision", loc="lower left")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary)

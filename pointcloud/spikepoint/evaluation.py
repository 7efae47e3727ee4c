"""Accuracy of a network on windows of recordings that it was not trained on, as numbers, JSON and a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader

from pointcloud.detection.records import write_json
from pointcloud.files import replacing
from pointcloud.metering import energy
from pointcloud.nn import unroll
from pointcloud.spikepoint.dataset import MovingPatterns
from pointcloud.spikepoint.network import SpikePoint
from pointcloud.spikepoint.patterns import CLASSES
from pointcloud.spikepoint.training import Batch, collate


@dataclass(frozen=True)
class Accuracy:
    """How windows of each true class (rows) were classified (columns), and what one window cost in nanojoules."""

    classes: tuple[str, ...]
    confusion: Int64[Tensor, "true found"]
    nanojoules: float

    @property
    def accuracy(self) -> float:
        """The share of windows that were classified right; NaN if there were none."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    @property
    def recalls(self) -> dict[str, float | None]:
        """The share of each class's windows that were found; None if there were none."""
        counts = zip(self.classes, self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return {name: found / windows if windows else None for name, found, windows in counts}


def evaluate(
    network: SpikePoint, recordings: int = 200, seed: int = 0, report: Callable[[str], None] = print
) -> Accuracy:
    """Return how a network does on the windows of so many evaluation recordings; `seed` draws its spikes.

    The energy is that of spikes of 0 and 1, also where it answers with integers.
    ValueError on a network with other classes than those of the recordings.
    """
    if network.config.classes != CLASSES:
        raise ValueError(
            f"this network tells {', '.join(network.config.classes)} apart, the recordings show {', '.join(CLASSES)}"
        )
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    patterns = MovingPatterns("evaluation", recordings, points=network.config.points)
    batches: Iterable[Batch] = DataLoader(patterns, 20, collate_fn=collate)
    nanojoules = 0.0
    for number, (clouds, labels) in enumerate(batches):
        found = network.classify(clouds.to(device), generator).argmax(1).cpu()
        confusion.index_put_((labels, found), torch.ones_like(labels), accumulate=True)
        if number == 0:
            spiking = unroll(copy.deepcopy(network)) if network.on_integers else network
            nanojoules = energy(spiking, clouds.to(device), generator).picojoules / 1000 / len(clouds)
        report(f"{int(confusion.sum())} windows")
    return Accuracy(CLASSES, confusion, nanojoules)


def write_results(result: Accuracy, folder: Path, **about: Any) -> list[Path]:
    """Write `results.json` (accuracy, confusion, energy and whatever else is given) and `confusion.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, numbers = folder / "confusion.png", folder / "results.json"
    draw_confusion(result, picture)
    told = {
        "accuracy": result.accuracy,
        "classes": result.recalls,
        "confusion": result.confusion.tolist(),
        "nanojoules_a_window": result.nanojoules,
    }
    write_json(numbers, {**about, **told})
    return [picture, numbers]


def draw_confusion(result: Accuracy, path: Path) -> None:
    """Draw the shares of each true class as a PNG."""
    from matplotlib.figure import Figure

    shares = result.confusion / result.confusion.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(6, 5), dpi=150, layout="constrained")
    places = range(len(result.classes))
    axes = figure.add_subplot(xlabel="found", ylabel="true", title=f"{result.accuracy:.1%} right")
    axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(places, result.classes, rotation=45, ha="right")
    axes.set_yticks(places, result.classes)
    for row, column in result.confusion.nonzero().tolist():
        share = float(shares[row, column])
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
    with replacing(path) as temporary:
        figure.savefig(temporary)

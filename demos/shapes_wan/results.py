"""The results of an evaluation: a JSON file that a later run goes on with, and what it says altogether."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from accel.errors import InputError
from demos.shapes_wan.scenes import parse_caption

TARGETS = {"color": 95.0, "motion": 90.0, "shape": 80.0}  # percent of actors
ALLOWED_LOSS = 3.0  # points that the sparse method may lie below dense
WAYS = ("dense", "sparse")
NEWER = "dtype", "cache_digest"  # settings that the first files do not have
FORMS = {"circularity": ("circle",), "corners": ("square", "triangle")}  # `outline.form` of these shapes


@dataclass
class Results:
    """Settings, and for each prompt what came out in each way ("dense", "sparse")."""

    file: Path
    settings: dict[str, Any]
    prompts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def resume(self) -> None:
        """Read what an earlier run left; InputError if it had other settings."""
        if not self.file.is_file():
            return
        earlier = json.loads(self.file.read_text())
        # What an old file does not say is taken to fit.
        before = {name: value for name, value in self.settings.items() if name in NEWER} | earlier["settings"]
        different = [name for name, value in self.settings.items() if before.get(name) != value]
        if different:
            raise InputError(f"{self.file} has another {', '.join(different)}; give another --output or delete it")
        self.prompts = earlier["prompts"]

    def save(self) -> None:
        """Replace the file at once."""
        content = {"settings": self.settings, "summary": self.summary(), "prompts": self.prompts}
        temporary = self.file.with_name(self.file.name + ".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.file)

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Return, for each way, percentages and forms over actors, mean likeness to dense and median seconds."""
        chosen = {way: {text: ways[way] for text, ways in self.prompts.items() if way in ways} for way in WAYS}
        return {way: _summarize(list(rows.values())) | _forms(rows) for way, rows in chosen.items() if rows}

    def table(self) -> Table:
        """Return the summary, each percentage with the target that it meets or misses."""
        summary = self.summary()
        table = Table("way", *(f"{name} %" for name in TARGETS), *FORMS, "PSNR dB", "SSIM", "seconds")
        for way, numbers in summary.items():
            cells = [_judged(way, name, summary) for name in TARGETS]
            digits = dict.fromkeys(FORMS, 3) | {"psnr_db": 2, "ssim": 4, "seconds": 1}
            table.add_row(way, *cells, *(_number(numbers[name], places) for name, places in digits.items()))
        actors = sum(len(ways["dense"]["verdicts"]) for ways in self.prompts.values())
        table.caption = f"{len(self.prompts)} prompts, {actors} actors; PSNR and SSIM to dense of the same seed"
        return table


def _summarize(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    summary: dict[str, float | None] = {
        name: 100 * statistics.mean(verdict[name] for verdict in verdicts) for name in TARGETS
    }
    for name, average in (("psnr_db", statistics.mean), ("ssim", statistics.mean), ("seconds", statistics.median)):
        values = [row[name] for row in rows if name in row]
        summary[name] = average(values) if values else None
    return summary


def _forms(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean form of all actors that should have one of the shapes; rows of before have none."""
    seen = [
        (actor.shape, verdict["form"])
        for caption, row in rows.items()
        for actor, verdict in zip(parse_caption(caption).actors, row["verdicts"], strict=True)
        if "form" in verdict
    ]
    chosen = {name: [value for shape, value in seen if shape in shapes] for name, shapes in FORMS.items()}
    return {name: statistics.mean(values) if values else None for name, values in chosen.items()}


def _judged(way: str, name: str, summary: dict[str, dict[str, float | None]]) -> str:
    value = summary[way][name] or 0.0
    if way == "dense":
        target, words = TARGETS[name], f">= {TARGETS[name]:.0f}"
    else:
        target, words = (summary["dense"][name] or 0.0) - ALLOWED_LOSS, f"dense - {ALLOWED_LOSS:.0f}"
    return f"{value:.1f} ({words}: {'met' if value >= target - 1e-9 else 'missed'})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

"""What a run over many files has done, for JSON and for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

STAGES = ("read", "detect", "write")


@dataclass
class Summary:
    """How many files were done, done before or failed (with the reason), what was found, and the seconds of it all.

    `notes` counts the files of which something had to be guessed or looks wrong, by kind, and `full_intensities` them
    by the full intensity that was guessed (see `Inputs`). These, objects and seconds are those of files done before,
    too; a speed is known only of files done now.
    """

    detected: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    full_intensities: Counter[int] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0

    @property
    def scans_per_second(self) -> float | None:
        return round(self.detected / self.elapsed, 3) if self.detected else None

    @property
    def milliseconds(self) -> dict[str, float]:
        """The mean time of each stage for a scan."""
        scans = max(self.detected + self.skipped, 1)
        return {stage: round(1000 * self.seconds[stage] / scans, 3) for stage in STAGES}

    def add(self, record: dict[str, Any], new: bool) -> list[str]:
        """Count what is written about a file, by this run or before; return the notes of a kind not seen yet.

        Also one where its full intensity is unlike those of all files before, as no run should mix units unseen.
        """
        self.detected, self.skipped = self.detected + new, self.skipped + (not new)
        said = [note for kind, note in record["notes"].items() if kind not in self.notes]
        self.notes.update(record["notes"].keys())
        full = record.get("full_intensity")  # records of earlier versions do not say
        if full is not None:
            if self.full_intensities and full not in self.full_intensities:
                before = " and ".join(map(str, sorted(self.full_intensities)))
                said.append(
                    f"its intensities were divided by {full}, those of files before by {before}: --full-intensity sets "
                    "one for all"
                )
            self.full_intensities[full] += 1
        self.objects.update(found["class"] for found in record["detections"])
        self.seconds.update(record["seconds"])
        return said

    def report(self) -> dict[str, Any]:
        """Return it with times per scan, for JSON."""
        return {**vars(self), "milliseconds": self.milliseconds, "scans_per_second": self.scans_per_second}

    def __str__(self) -> str:
        found = ", ".join(f"{count} {name}" for name, count in sorted(self.objects.items())) or "nothing"
        return f"{self.detected} detected, {self.skipped} done before, {len(self.failed)} failed; found: {found}"

    def __rich__(self) -> Table:
        table = Table("stage", "ms per scan", caption=f"{self.scans_per_second} scans/s")
        for stage, time in {**self.milliseconds, "all": sum(self.milliseconds.values())}.items():
            table.add_row(stage, f"{time:.1f}")
        return table

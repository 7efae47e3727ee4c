"""What happened in each attention call of a generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from accel.attention.call import AttentionCall
from accel.attention.execute import Attended, sampled_recall
from accel.models.stopwatch import Stopwatch

# Of so many sparse calls one samples its recall, which takes a few percent of an attention: a prime number that divides
# no model's number of layers, so that all of them have their turn.
RECALL_CALLS = 11


@dataclass(frozen=True)
class CallRecord:
    """One self-attention call: `kind` is dense, refresh or sparse; `seconds` covers planning and attention.

    `plan_seconds` is the part of it that decided what to compute; in a refresh that includes the full attention.
    `recall` is the softmax mass on the kept keys (sampled rows), None but in one of a few sparse calls; `shape` is
    (batch, heads, tokens, head_dim).
    """

    step: int
    steps: int
    layer: int
    branch: str
    kind: str
    density: float
    seconds: float
    recall: float | None
    shape: tuple[int, ...]
    plan_seconds: float = 0.0


@dataclass(frozen=True)
class BlockRecord:
    """What became of a stretch of blocks in one call: `kind` is computed, reused, skipped or narrow (as to MLPs)."""

    step: int
    steps: int
    branch: str
    sample: int | None
    blocks: range
    kind: str


class Records:
    """The records of one generation; density, recall and time stay on the device until somebody reads them."""

    def __init__(self) -> None:
        self._notes: list[tuple[CallRecord, float | Tensor, Tensor | None, Stopwatch]] = []
        self._sparse_calls = 0

    def add(self, call: AttentionCall, attended: Attended, watch: Stopwatch) -> None:
        """Note a call: a lap of the watch ended with its plan; the next one ends here, before recall is sampled."""
        watch.lap()
        progress = call.progress
        recall = None
        if attended.lse is not None:
            recall = sampled_recall(call, attended.lse) if self._sparse_calls % RECALL_CALLS == 0 else None
            self._sparse_calls += 1
        record = CallRecord(
            progress.step, progress.steps, call.layer, progress.branch, attended.kind, 0.0, 0.0, None,
            tuple(call.q.shape),
        )  # fmt: skip
        self._notes.append((record, attended.density, recall, watch))

    def read(self) -> list[CallRecord]:
        """Return all records, in the order of the calls."""
        return [
            dataclasses.replace(
                record,
                density=float(density),
                seconds=watch.seconds(),
                plan_seconds=watch.seconds(lap=0),
                recall=None if recall is None else recall.item(),
            )
            for record, density, recall, watch in self._notes
        ]


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return sum(values) / len(values) if values else None


def summarize(records: Sequence[CallRecord]) -> dict[str, float | int | None]:
    """Return counts, densities (over sparse calls, and over all), recall and seconds of a generation.

    `planning_share` is the share of the sparse calls' time that went into planning.
    """
    sparse = [record for record in records if record.kind == "sparse"]
    return {
        "calls": len(records),
        "sparse_calls": len(sparse),
        "dense_steps": len({record.step for record in records} - {record.step for record in sparse}),
        "density": mean([record.density for record in sparse]),
        "density_overall": mean([record.density for record in records]),
        "recall": mean([record.recall for record in sparse if record.recall is not None]),
        "planning_share": _share([record.plan_seconds for record in sparse], [record.seconds for record in sparse]),
        "attention_seconds": sum(record.seconds for record in records),
    }


def block_shares(records: Sequence[BlockRecord]) -> dict[str, float | None]:
    """Return which share of all blocks was computed in full, reused, skipped, and computed with a narrow MLP.

    None of all of them without a cache.
    """
    total = sum(len(record.blocks) for record in records)
    counts = {
        kind: sum(len(record.blocks) for record in records if record.kind == kind)
        for kind in ("computed", "reused", "skipped", "narrow")
    }
    return {kind: count / total if total else None for kind, count in counts.items()}


def block_letters(records: Sequence[BlockRecord]) -> list[str]:
    """Return what became of each block in each step, a word a step: c computed, r reused, s skipped, n narrow.

    The first branch and sample stand for all.
    """
    first = [record for record in records if (record.branch, record.sample) == (records[0].branch, records[0].sample)]
    steps = sorted({record.step for record in first})
    return ["".join(record.kind[0] * len(record.blocks) for record in first if record.step == step) for step in steps]


def _share(part: Sequence[float], whole: Sequence[float]) -> float | None:
    return sum(part) / sum(whole) if sum(whole) else None

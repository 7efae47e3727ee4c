"""The size of a SpikePoint and how it spikes, as data, and this data as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Coding = Literal["rate", "latency", "direct"]
CODINGS = ("rate", "latency", "direct")
NEURONS = ("lif", "plif", "integer")
SURROGATES = ("arctangent", "rectangular", "sigmoid")


@dataclass(frozen=True)
class SpikePointConfig:
    """All that makes a SpikePoint; `widths` are the channels of groups, of both global stages and of the classifier.

    `points` of a window are taken, `groups` of `neighbors` made of them, and coded as `steps` steps of spikes. With
    `plif` the layers before the classifier learn their leaks, one number each: 11 more than the published counts of
    parameters, which are to the digit those with `lif`. With `integer` neurons train on integers up to `steps`, in one
    step, and `pointcloud.nn.unroll` makes them that many steps of spikes: direct coding then, and the largest spikes of
    a group's neighbours are taken before they are added, not after. Without `spiking` it is the network of the same
    shape with ReLU, one step and the values themselves. ValueError on settings that do not fit.
    """

    classes: tuple[str, ...]
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    points: int = 1024
    groups: int = 1024
    neighbors: int = 24
    steps: int = 16
    votes: int = 10
    coding: str = "rate"
    neuron: str = "lif"
    surrogate: str = "arctangent"
    spiking: bool = True

    @property
    def coded_steps(self) -> int:
        """How many steps the input is coded as."""
        return 1 if self.neuron == "integer" or not self.spiking else self.steps

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be different names, one or more, got {self.classes}")
        if len(self.widths) != 4 or min(self.widths) < 2:
            raise ValueError(f"widths must be four numbers of channels, each 2 or more, got {self.widths}")
        if min(self.groups, self.steps, self.votes) < 1 or self.neighbors < 2:
            raise ValueError(
                f"groups, steps and votes must be 1 or more, neighbors 2 or more, got {self.groups}, {self.steps}, "
                f"{self.votes} and {self.neighbors}"
            )
        if self.points < max(self.groups, self.neighbors):
            raise ValueError(
                f"{self.points} points are too few for {self.groups} groups of {self.neighbors} neighbours; give "
                f"{max(self.groups, self.neighbors)} points or more"
            )
        for name, value, accepted in (
            ("coding", self.coding, CODINGS),
            ("neuron", self.neuron, NEURONS),
            ("surrogate", self.surrogate, SURROGATES),
        ):
            if value not in accepted:
                raise ValueError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")
        if self.neuron == "integer" and self.coding != "direct":
            raise ValueError(f"coding is {self.coding!r}; neurons that train on integers take direct, lif and plif all")

    def to_json(self) -> str:
        """Return all of it as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SpikePointConfig:
        """Return what `to_json` was called on; ValueError if the text is none of its."""
        try:
            values = json.loads(text)
            return cls(**{**values, "classes": tuple(values["classes"]), "widths": tuple(values["widths"])})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no SpikePoint configuration of this version ({error})") from error


def small(classes: Sequence[str], **changes: Any) -> SpikePointConfig:
    """Return the small published network: 160,428 parameters for ten classes."""
    return SpikePointConfig(tuple(classes), **changes)


def large(classes: Sequence[str], **changes: Any) -> SpikePointConfig:
    """Return the large published network: 582,700, 793,850 and 1,051,350 parameters for 10, 51 and 101 classes."""
    return SpikePointConfig(tuple(classes), **{"widths": (64, 128, 256, 512), **changes})


def tiny(classes: Sequence[str], **changes: Any) -> SpikePointConfig:
    """Return a network that two CPU cores train in minutes: fewer points and steps than any that was published.

    Its input is coded directly: in four steps a rate could tell five values apart, and that by chance. Its neurons
    train on integers: so it learns in a fifth of the time, and better.
    """
    sizes = {"widths": (32, 64, 64, 128), "points": 256, "groups": 64, "neighbors": 8, "steps": 4}
    settings = {"coding": "direct", "neuron": "integer"}
    return SpikePointConfig(tuple(classes), **{**sizes, **settings, **changes})

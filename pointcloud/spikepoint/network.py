"""The network: groups and their centres in two branches, two global stages, the voting classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from pointcloud.spikepoint.coding import direct_code, latency_code, rate_code
from pointcloud.spikepoint.config import SpikePointConfig
from pointcloud.spikepoint.grouping import Groups, group_clouds
from pointcloud.spikepoint.layers import Layer, Residual
from pointcloud.weights import fill, read_weights, write_weights


class Coding(nn.Module):
    """The input coding of a configuration; a layer of its own, so that its work can be counted."""

    def __init__(self, config: SpikePointConfig) -> None:
        super().__init__()
        self.kind = config.coding if config.spiking else "direct"
        self.steps = config.coded_steps

    def forward(
        self, values: Float[Tensor, "*shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " steps *shape"]:
        """Return the values over all steps, as spikes unless they are coded directly."""
        if self.kind == "rate":
            return rate_code(values, self.steps, generator)
        return (latency_code if self.kind == "latency" else direct_code)(values, self.steps)

    def coding_work(self, values: Tensor, coded: Tensor) -> tuple[float, float]:
        """Return additions and multiplications: a comparison for each spike that may be, a product for each latency."""
        return (float(coded.numel()) if self.kind == "rate" else 0.0), float(values.numel() * (self.kind == "latency"))


class SpikePoint(nn.Module):
    """SpikePoint (Ren et al., ICLR 2024, arXiv 2310.07189), built from the paper; it has no public code.

    Every neuron sends 0 and 1 alone. A layer behind a sum reads how many spikes arrive together: 0 to 2 behind a
    residual, 0 to 4 behind the sum of both branches.
    """

    def __init__(self, config: SpikePointConfig) -> None:
        super().__init__()
        first, second, third, last = config.widths
        self.config, self.coding = config, Coding(config)
        self.local = nn.Sequential(Layer(6, first, config), Residual(first, config, bottleneck=True))
        self.centers = nn.Sequential(Layer(3, first, config), Residual(first, config, bottleneck=True))
        self.stages = nn.Sequential(
            *(Layer(first, second, config), Residual(second, config)),
            *(Layer(second, third, config), Residual(third, config)),
            Layer(third, last, config),
        )
        self.head = nn.Sequential(
            Layer(last, last, config, learned_leak=False),
            Layer(last, config.votes * len(config.classes), config, learned_leak=False),
        )

    def forward(
        self, clouds: Float32[Tensor, "batch points 3"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "steps batch classes"]:
        """Return the share of each class's neurons that fire in each step, for clouds of `sample_cloud`.

        `generator` draws the spikes of rate coding, on the clouds' device; the same state gives the same spikes.
        ValueError on clouds with fewer points than groups or neighbours.
        """
        return self.classify_groups(group_clouds(clouds, self.config.groups, self.config.neighbors), generator)

    def classify_groups(
        self, groups: Groups, generator: torch.Generator | None = None
    ) -> Float[Tensor, "steps batch classes"]:
        """Return the same of clouds that are grouped already."""
        dtype = next(self.parameters()).dtype
        local, centers = (self.coding(values.to(dtype), generator) for values in groups)
        x = self._pooled(local) + self.centers(centers)
        votes = self.head(self.stages(x).amax(-2))
        if self.on_integers and len(votes) == self.config.coded_steps:
            votes = votes / self.config.steps
        return votes.unflatten(-1, (len(self.config.classes), self.config.votes)).mean(-1)

    def _pooled(self, x: Float[Tensor, "steps batch groups neighbors 6"]) -> Float[Tensor, "more batch groups c"]:
        """Return what the local branch makes of each group."""
        if self.config.neuron != "integer":
            return self.local(x).amax(-2)
        # The largest of sums is not known from the largest sums of steps; the largest of one neuron's spikes is.
        layer, residual = self.local
        assert isinstance(residual, Residual)
        own = layer(x)
        return own.amax(-2) + residual.layers(own).amax(-2)

    @torch.inference_mode()
    def classify(
        self, clouds: Float32[Tensor, "batch points 3"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Return the mean of all steps, 0 to 1, in evaluation mode; arguments and errors as those of `forward`."""
        training = self.training
        try:
            return self.eval()(clouds, generator).mean(0)
        finally:
            self.train(training)

    @property
    def on_integers(self) -> bool:
        """Whether `pointcloud.nn.unroll` makes spikes of what its neurons send."""
        return self.config.spiking and self.config.neuron == "integer"

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, replacing an old file at once."""
        write_weights(path, self, "spikepoint", self.config.to_json())

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[str] | None = None) -> SpikePoint:
        """Return the network in a file of `save`, in evaluation mode.

        FileNotFoundError if there is none; ValueError if it is no such file, or not of the classes asked for.
        """
        text, state = read_weights(path, "spikepoint", "SpikePoint", "SpikePoint.save")
        config = SpikePointConfig.from_json(text)
        if classes is not None and tuple(classes) != config.classes:
            raise ValueError(f"{path} tells {', '.join(config.classes)} apart, not {', '.join(classes)}")
        network = cls(config)
        fill(network, state, path)
        return network.eval()

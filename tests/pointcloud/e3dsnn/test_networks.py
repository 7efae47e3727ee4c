"""E-3DSNN: published sizes, integers against binary spikes, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spconv.pytorch")

from pointcloud.e3dsnn import HUGE, LARGE, SEGMENTATION, SMALL, TINY, Classifier, E3DSNNConfig, Segmenter  # noqa: E402
from pointcloud.nn import SpikingLayer, unroll  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
NARROW = E3DSNNConfig(6, 5, 8, (8, 16), (1, 2))
NARROW_SEGMENTER = replace(NARROW, decoder=(12, 16))


def make(config: E3DSNNConfig) -> nn.Module:
    """Return a network in float64 whose neurons fire, though nobody has trained it: statistics of its own input."""
    torch.manual_seed(0)
    network = (Segmenter if config.decoder else Classifier)(config).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = None
                module.bias.fill_(0.5)
        network.train()(*cloud(config.values))
    return network.eval()


def cloud(values: int, batch: int = 2) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(1)
    places = torch.randint(0, 13, (batch * 90, 3), generator=generator)
    rows = torch.cat([torch.arange(batch).repeat_interleave(90)[:, None], places], 1).unique(dim=0).int()
    return torch.randn(len(rows), values, generator=generator, dtype=torch.float64), rows, batch


@pytest.mark.parametrize(
    ("config", "count"), [(TINY, 1_874_216), (SMALL, 3_271_144), (LARGE, 17_330_600), (HUGE, 46_574_248)]
)
def test_classifiers_have_the_published_sizes(config: E3DSNNConfig, count: int) -> None:
    with torch.device("meta"):
        assert sum(weights.numel() for weights in Classifier(config).parameters()) == count


def test_the_segmenter_has_the_published_size() -> None:
    with torch.device("meta"):
        assert sum(weights.numel() for weights in Segmenter(SEGMENTATION).parameters()) == 20_049_683


def watch(network: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0] if isinstance(given[0], Tensor) else given[0].features)

    for module in network.modules():
        if isinstance(module, SpikingLayer):
            module.layer.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("config", [NARROW, NARROW_SEGMENTER, replace(TINY, values=4)], ids=["class", "parts", "tiny"])
def test_integers_and_binary_spikes_give_the_same_logits(config: E3DSNNConfig) -> None:
    network, given = make(config), cloud(config.values)
    with torch.no_grad():
        integers = network(*given)
        seen = watch(unroll(network))
        spiking = network(*given)
    assert (integers - spiking).abs().max() < 1e-10 and integers.std() > 1e-6
    assert len(seen) >= sum(isinstance(module, SpikingLayer) for module in network.modules())
    assert all(((spikes == 0) | (spikes == 1)).all() for spikes in seen)
    rates = [spikes.double().mean().item() for spikes in seen]
    assert sum(rates) / len(rates) > 0.02 and max(rates) < 0.95


def test_the_same_network_without_spikes_has_as_many_weights_and_no_spikes() -> None:
    spiking, rectified = make(NARROW), make(replace(NARROW, levels=0))
    assert [x.shape for x in spiking.state_dict().values()] == [x.shape for x in rectified.state_dict().values()]
    with pytest.raises(ValueError, match="no SpikingLayer to unroll"):
        unroll(rectified)


def test_clouds_of_a_batch_do_not_see_each_other_and_all_weights_learn() -> None:
    network = make(NARROW)
    features, rows, _ = cloud(6)
    both = network(features, rows, 2)
    second = rows[:, 0] == 1
    alone = rows[second].clone()
    alone[:, 0] = 0
    torch.testing.assert_close(network(features[second], alone, 1)[0], both[1])
    network.train()(features, rows, 2).square().sum().backward()
    gradients = {name: weights.grad for name, weights in network.named_parameters()}
    assert len(gradients) == 44
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_the_last_row_of_an_odd_grid_counts() -> None:
    network = make(NARROW)
    corner = torch.tensor([[0, 0, 0, 0], [0, 12, 12, 12]], dtype=torch.int32)
    features = torch.randn(2, 6, dtype=torch.float64)
    potentials = network.get_submodule("encoder")(features, corner, 1)
    assert [len(x.features) for x in potentials] == [2, 2, 2]


def test_what_does_not_fit_is_named() -> None:
    network, (features, rows, batch) = make(NARROW), cloud(6)
    with pytest.raises(ValueError, match="voxels have 5 values, this network takes 6"):
        network(features[:, :5], rows, batch)
    with pytest.raises(ValueError, match="there is no voxel"):
        network(features[:0], rows[:0], batch)
    with pytest.raises(ValueError, match=r"every one of the 3 clouds must have a voxel; they have \[\d+, \d+, 0\]"):
        network(features, rows, 3)
    for wrong, words in (
        ({"depths": (1,)}, "one entry a stage"),
        ({"decoder": (8,)}, "as many stages as the encoder, 2"),
        ({"classes": 0}, "1 or more"),
        ({"levels": -1}, "levels must be"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(NARROW, **wrong)
    with pytest.raises(ValueError, match="a classifier has no decoder"):
        Classifier(NARROW_SEGMENTER)
    with pytest.raises(ValueError, match="needs the channels of its decoder"):
        Segmenter(NARROW)

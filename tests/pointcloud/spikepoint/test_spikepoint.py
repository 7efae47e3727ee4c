"""SpikePoint: exact counts of parameters, spikes of 0 and 1 alone, coding, groups, windows, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("spconv.pytorch")

from pointcloud import energy  # noqa: E402
from pointcloud.events.record import Events  # noqa: E402
from pointcloud.nn import LIF, PLIF, IntegerLIF, IntegerNeurons, unroll  # noqa: E402
from pointcloud.spikepoint import (  # noqa: E402
    SpikePoint,
    SpikePointConfig,
    direct_code,
    group_clouds,
    large,
    latency_code,
    rate_code,
    sample_cloud,
    small,
    tiny,
)
from pointcloud.spikepoint.layers import Layer  # noqa: E402

CLASSES = ("left", "right", "up")


def tiny_network(**changes: object) -> SpikePoint:
    """Return a small network with norms that let neurons fire."""
    torch.manual_seed(0)
    sizes = {
        "widths": (8, 12, 16, 20),
        "points": 40,
        "groups": 10,
        "neighbors": 6,
        "steps": 5,
        "votes": 3,
        "coding": "rate",
        "neuron": "lif",
    }
    network = SpikePoint(tiny(CLASSES, **{**sizes, **changes}))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.bias, 0, 1)
    return network


def cloud(batch: int = 2, points: int = 40, seed: int = 1) -> Tensor:
    """Return clouds in the unit cube."""
    return torch.rand(batch, points, 3, generator=torch.Generator().manual_seed(seed))


def window(count: int, seed: int = 0) -> Events:
    """Return events on a sensor of 64 x 48."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(1_000_000, (count,), generator=generator).sort().values + 5_000_000
    x, y = (torch.randint(size, (count,), generator=generator).int() for size in (64, 48))
    return Events(t, x, y, torch.rand(count, generator=generator) < 0.5, 64, 48)


@pytest.mark.parametrize(
    ("make", "classes", "count"),
    [(small, 10, 160_428), (large, 10, 582_700), (large, 51, 793_850), (large, 101, 1_051_350)],
)
@pytest.mark.parametrize("changes", [{}, {"neuron": "plif"}, {"spiking": False}], ids=["lif", "plif", "relu"])
def test_parameters_are_exactly_the_published_ones(make, classes: int, count: int, changes: dict) -> None:
    network = SpikePoint(make([str(number) for number in range(classes)], **changes))
    counts = {name: x.numel() for name, x in network.named_parameters()}
    leaks = [name for name in counts if name.endswith("leak")]
    assert sum(counts.values()) - len(leaks) == count
    assert len(leaks) == (11 if changes == {"neuron": "plif"} else 0)


@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("coding", ["rate", "latency"])
def test_every_spike_is_0_or_1_and_layers_add_counts_of_them(neuron: str, coding: str) -> None:
    network = tiny_network(neuron=neuron, coding=coding).eval()
    spikes, inputs = [], {}
    for name, module in network.named_modules():
        if isinstance(module, LIF | PLIF):
            module.register_forward_hook(lambda _, given, out: spikes.append(out[0]))
        if isinstance(module, Layer):
            module.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    out = network(cloud(), torch.Generator().manual_seed(3))
    assert len(spikes) == 13 * network.config.steps and out.shape == (5, 2, 3)
    assert all(((x == 0) | (x == 1)).all() for x in spikes) and 0.01 < torch.cat([*map(torch.ravel, spikes)]).mean()
    assert all(torch.equal(x, x.round()) and x.min() >= 0 and x.max() <= 4 for x in inputs.values())
    assert inputs["local.0"].max() == inputs["centers.0"].max() == 1


INTEGER = {"neuron": "integer", "coding": "direct"}


@pytest.mark.parametrize("levels", [1, 4])
def test_neurons_that_train_on_integers_send_spikes_of_0_and_1(levels: int) -> None:
    network = tiny_network(**INTEGER, steps=levels).double().eval()
    integers = network(cloud())
    spikes, inputs = [], {}
    for name, module in unroll(network).named_modules():
        if isinstance(module, IntegerNeurons):
            module.register_forward_hook(lambda _, given, out: spikes.append(out))
        if isinstance(module, Layer):
            module.linear.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    steps = network(cloud())
    assert integers.shape == (1, 2, 3) and steps.shape == (levels, 2, 3)
    assert (steps.mean(0) - integers[0]).abs().max() < 1e-10 and 0.01 < integers.mean() < 0.99
    assert len(spikes) == 13 and all(len(x) == levels and ((x == 0) | (x == 1)).all() for x in spikes)
    bare = {"local.0", "centers.0"}
    assert all(torch.equal(x, x.round()) and 0 <= x.min() and x.max() <= 4 for n, x in inputs.items() if n not in bare)
    assert torch.equal(network.classify(cloud()), steps.mean(0))
    assert torch.equal(unroll(network, False)(cloud()), integers)


def test_integers_and_spikes_cost_as_many_sums() -> None:
    network, clouds = tiny_network(**INTEGER).double(), cloud(4)
    sums = []
    for unrolled in (False, True):
        rows = energy(unroll(network, unrolled), clouds).layers
        sums.append(sum(row.additions for row in rows if row.part == "layer"))
        assert sum(row.part == "neuron" for row in rows) == 13 and not any(row.part == "not counted" for row in rows)
    assert sums[0] == pytest.approx(sums[1], rel=1e-6) and sums[0] > 0


def test_files_keep_which_neurons_there_are(tmp_path: Path) -> None:
    network = tiny_network(**INTEGER).eval()
    network.save(tmp_path / "network.safetensors")
    again = SpikePoint.load(tmp_path / "network.safetensors", CLASSES)
    assert any(isinstance(module, IntegerLIF) for module in again.modules())
    assert torch.equal(again.classify(cloud()), network.classify(cloud()))
    with pytest.raises(ValueError, match="coding is 'rate'; neurons that train on integers take direct, lif and plif"):
        tiny_network(neuron="integer")


def test_the_network_without_spikes_has_the_same_shape() -> None:
    spiking, ann = tiny_network(), tiny_network(spiking=False)
    assert ann.load_state_dict(spiking.state_dict()) and not any(isinstance(m, LIF) for m in ann.modules())
    assert ann.eval()(cloud()).shape == (1, 2, 3)


@pytest.mark.parametrize("surrogate", ["arctangent", "rectangular", "sigmoid", None])
def test_gradients_reach_every_parameter_through_each_surrogate(surrogate: str | None) -> None:
    network = tiny_network(**(INTEGER if surrogate is None else {"surrogate": surrogate, "neuron": "plif"}))
    network(cloud(4), torch.Generator().manual_seed(0)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert sum(bool(p.grad.abs().sum() > 0) for p in network.parameters() if p.grad is not None) > 50


def test_the_same_generator_gives_the_same_spikes_and_clouds_do_not_meet() -> None:
    network = tiny_network().eval()
    both, again, other = (network.classify(cloud(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(both, again) and not torch.equal(both, other)
    direct = tiny_network(coding="direct").eval()
    assert torch.allclose(direct.classify(cloud())[1:], direct.classify(cloud()[1:]))


def test_codings_keep_values() -> None:
    values = torch.tensor([[0.0, 0.2, 0.75], [1.0, 1.7, -0.3]])
    rates = rate_code(values, 4000, torch.Generator().manual_seed(0))
    assert set(rates.unique().tolist()) == {0, 1}
    assert (rates.mean(0) - values.clamp(0, 1)).abs().max() < 0.03
    latency = latency_code(values, 4)
    assert latency.sum(0).tolist() == [[0, 1, 1], [1, 1, 0]]
    assert latency.argmax(0)[1].tolist()[:2] == [0, 0] and latency.argmax(0)[0].tolist()[1:] == [3, 1]
    assert torch.equal(direct_code(values, 3)[2], values)


def test_groups_are_folded_beside_their_minimum() -> None:
    clouds = cloud(points=60)
    groups = group_clouds(clouds, 12, 8)
    for index in range(2):
        for group in range(12):
            center = groups.centers[index, group]
            order = (clouds[index] - center).square().sum(1).argsort()[:8]
            near = clouds[index][order]
            deviation = ((near - center).square().sum() / (8 * 3 - 1)).sqrt()
            assert torch.allclose(groups.local[index, group, :, :3], (near - center).abs() / deviation, atol=1e-5)
            assert torch.equal(groups.local[index, group, :, 3:], near.amin(0).expand(8, 3))
    assert groups.local[..., :3].mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.15)  # a folded normal's mean


def test_a_group_in_one_place_has_no_distances() -> None:
    groups = group_clouds(torch.full((1, 6, 3), 0.5), 2, 4)
    assert torch.equal(groups.local[0, 0, 0], torch.tensor([0, 0, 0, 0.5, 0.5, 0.5]))


@pytest.mark.parametrize("count", [1, 7, 64, 300])
def test_windows_of_any_size_become_clouds_of_one_size(count: int) -> None:
    events = window(count)
    points = sample_cloud(events, 64, torch.Generator().manual_seed(0))
    assert points.shape == (64, 3) and points.min() >= 0 and points.max() <= 1
    assert (points[:, 2].diff() >= 0).all()
    _, times = points.unique(dim=0, return_counts=True)
    assert times.max() - times.min() <= 1 and len(times) == min(count, 64)
    network = tiny_network(points=64).eval()
    assert network.classify(points[None], torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: sample_cloud(window(0), 64), "the window holds no events"),
        (lambda: group_clouds(cloud(points=5), 4, 8), "clouds of 5 points cannot make 4 groups of 8 neighbours"),
        (lambda: tiny(CLASSES, points=8), "8 points are too few for 64 groups of 8 neighbours; give 64"),
        (lambda: tiny(("a", "a")), "different names"),
        (lambda: tiny(CLASSES, coding="phase"), "coding is 'phase'; accepted: rate, latency, direct"),
        (lambda: tiny(CLASSES, widths=(1, 2, 3, 4)), "widths must be four numbers"),
        (lambda: tiny(CLASSES, neighbors=1), "neighbors 2 or more"),
        (lambda: SpikePointConfig.from_json("[]"), "no SpikePoint configuration"),
    ],
)
def test_bad_input_gets_one_clear_line(call, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_files_bring_the_same_network_back(tmp_path: Path) -> None:
    network, file = tiny_network(coding="latency").eval(), tmp_path / "network.safetensors"
    network.save(file)
    loaded = SpikePoint.load(file, CLASSES)
    assert loaded.config == network.config and torch.equal(loaded.classify(cloud()), network.classify(cloud()))
    with pytest.raises(ValueError, match="tells left, right, up apart, not a, b"):
        SpikePoint.load(file, ("a", "b"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SpikePoint.load(tmp_path / "none.safetensors")
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match="no safetensors file"):
        SpikePoint.load(file)
    save_file({"x": torch.zeros(1)}, file, {"spikepoint": network.config.to_json()})
    with pytest.raises(ValueError, match="weights of another network than its configuration"):
        SpikePoint.load(file)
    assert dataclasses.replace(network.config, steps=2) != network.config

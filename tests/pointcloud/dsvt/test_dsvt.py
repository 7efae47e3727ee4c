"""The transformer against padded attention of torch, loops in float64 and the published numbers of parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from pointcloud.dsvt import (
    DSVT,
    NUSCENES_PILLAR,
    TINY,
    WAYMO_PILLAR,
    WAYMO_VOXEL,
    DSVTConfig,
    DynamicVFE,
    StageConfig,
)
from pointcloud.dsvt.attention import SetAttention
from pointcloud.dsvt.pooling import AttentionPooling
from pointcloud.dsvt.sets import partition
from pointcloud.dsvt.windows import split_windows
from pointcloud.voxels import VoxelGrid
from tests.pointcloud.dsvt.voxel_scenes import FLAT, TALL, random_voxels

PUBLISHED = [
    pytest.param(WAYMO_PILLAR, 38_496, 2_684_928, 304_128, 0, id="waymo-pillar"),
    pytest.param(WAYMO_VOXEL, 38_496, 3_133_824, 305_280, 447_744, id="waymo-voxel"),
    pytest.param(NUSCENES_PILLAR, 17_472, 1_200_128, 137_216, 0, id="nuscenes"),
]


def count(module: nn.Module, part: str = "") -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if part in name)


def scene(config: DSVTConfig, voxels: int = 300, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    """Return float64 features and coordinates; in a flat grid, close together."""
    shape = config.shapes[0] if config.shapes[0][2] > 1 else (20, 18, 1)
    coordinates = random_voxels(shape, voxels, batch_size)
    features = torch.randn(len(coordinates), config.channels, generator=torch.Generator().manual_seed(1))
    return features.double(), coordinates


def make(config: DSVTConfig) -> DSVT:
    """Return a float64 network in evaluation mode, no parameter or statistic of which is at its first value."""
    torch.manual_seed(0)
    model = DSVT(config).double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return model


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def padded_attention(attention: nn.MultiheadAttention, x: Tensor, position: Tensor, slots: Tensor, repeats: Tensor):
    """Return the published form: attention on padded sets with repeats masked, and any copy of a voxel back."""
    keys = (x + position)[slots]
    out = nn.MultiheadAttention.forward(attention, keys, keys, x[slots], repeats, need_weights=False)[0]
    return torch.zeros_like(x).index_put((slots[~repeats],), out[~repeats])


@pytest.mark.parametrize("config,features,backbone,positions,pooling", PUBLISHED)
def test_published_numbers_of_parameters(
    config: DSVTConfig, features: int, backbone: int, positions: int, pooling: int
) -> None:
    model = DSVT(config)
    assert count(model) == backbone
    assert count(model, "posembed_layers") == positions and count(model, "reduction") == pooling
    assert count(DynamicVFE(config.grid, config.values, config.channels)) == features


def test_published_shapes_and_names() -> None:
    assert WAYMO_PILLAR.shapes[0] == (468, 468, 1) and NUSCENES_PILLAR.shapes[0] == (360, 360, 1)
    assert [shape[2] for shape in WAYMO_VOXEL.shapes] == [32, 8, 2, 1, 1] and TINY.shapes[0] == (160, 160, 1)
    names = DSVT(WAYMO_VOXEL).state_dict().keys() | DynamicVFE(TINY.grid, 4, 64).state_dict().keys()
    assert names >= {
        "stage_0.0.encoder_list.0.win_attn.self_attn.in_proj_weight",
        "stage_0.0.encoder_list.0.win_attn.self_attn.in_proj_bias",
        "stage_0.0.encoder_list.1.win_attn.self_attn.out_proj.weight",
        "stage_1.0.encoder_list.1.win_attn.linear1.weight",
        "stage_1.0.encoder_list.1.win_attn.norm2.bias",
        "stage_3.0.encoder_list.0.norm.weight",
        "residual_norm_stage_0.0.weight",
        "input_layer.posembed_layers.0.0.1.position_embedding_head.0.weight",
        "input_layer.posembed_layers.3.0.0.position_embedding_head.1.running_mean",
        "pfn_layers.0.linear.weight",
        "pfn_layers.1.norm.running_var",
    }


@pytest.mark.parametrize("dtype,tolerance", ((torch.float64, 1e-12), (torch.float32, 1e-6)))
@pytest.mark.parametrize("set_size", (1, 5, 24))
def test_attention_and_its_gradients_equal_the_padded_form(dtype: torch.dtype, tolerance: float, set_size: int) -> None:
    torch.manual_seed(0)
    features, coordinates = scene(FLAT)
    sets = partition(split_windows(coordinates, FLAT.shapes[0], (6, 6, 1), (3, 3, 0)), set_size)
    attention = SetAttention(16, 4, batch_first=True).to(dtype)
    nn.init.normal_(attention.in_proj_bias)
    position, weights = torch.randn(2, *features.shape, dtype=dtype)
    for layout, slots, repeats in zip(sets.layouts(), *sets.padded(), strict=True):
        results = []
        for run in (
            lambda x, layout=layout: attention(x, position, layout),
            lambda x, slots=slots, repeats=repeats: padded_attention(attention, x, position, slots, repeats),
        ):
            attention.zero_grad()
            leaf = features.to(dtype).requires_grad_()
            out = run(leaf)
            (out * weights).sum().backward()
            results.append([out, leaf.grad, *gradients(attention)])
        for ours, expected in zip(*results, strict=True):
            assert (ours - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


def published_flat_network(model: DSVT, x: Tensor, coordinates: Tensor) -> Tensor:
    """Return the features of a network with one flat stage, from padded attention and the layers' formulas."""
    stage, shape = model.config.stages[0], model.config.shapes[0]
    windows = [split_windows(coordinates, shape, *choice) for choice in stage.configurations]
    blocks: Any = model.stage_0
    norms: Any = model.residual_norm_stage_0
    for number, block in enumerate(blocks):
        slots, repeats = partition(windows[number % 2], stage.set_size).padded()
        before = x
        for index, layer in enumerate(block.encoder_list):
            own = windows[index if model.config.published_position_index else number % 2]
            place = own.inside[:, :2] - torch.tensor(own.size[:2]) / 2
            embed: Any = model.input_layer.posembed_layers
            position = embed[0][number][index].position_embedding_head(place.double())
            inner, residual = layer.win_attn, x
            x = inner.norm1(x + padded_attention(inner.self_attn, x, position, slots[index], repeats[index]))
            x = layer.norm(residual + inner.norm2(x + inner.linear2(gelu(inner.linear1(x)))))
        x = norms[number](x + before)
    return x


@pytest.mark.parametrize("published", (True, False))
def test_the_network_equals_its_published_form(published: bool) -> None:
    config = replace(FLAT, published_position_index=published)
    model, (features, coordinates) = make(config), scene(config)
    out, kept = model(features, coordinates, 2)
    assert kept is coordinates
    assert (out - published_flat_network(model, features, coordinates)).abs().max() < 1e-11


@pytest.mark.parametrize("masked", (False, True))
def test_pooling_equals_attention_on_all_slots(masked: bool) -> None:
    config = replace(TALL, mask_empty_slots=masked)
    torch.manual_seed(0)
    pooling = AttentionPooling(config, 1).double()
    nn.init.normal_(pooling.self_attn.in_proj_bias)
    nn.init.normal_(pooling.pos_embedding)
    coordinates = random_voxels(config.shapes[1], 250)
    x = torch.randn(len(coordinates), 16, dtype=torch.float64)
    out, pooled = pooling(x, coordinates)
    cells: dict[tuple, dict[int, int]] = {}
    for row, (batch, z, y, x_) in enumerate(coordinates.tolist()):
        cells.setdefault((batch, x_ // 2, y, z // 2), {})[x_ % 2 * 2 + z % 2] = row
    assert pooled.tolist() == [[batch, z, y, x_] for batch, x_, y, z in sorted(cells)]
    slots, empty = torch.zeros(len(cells), 4, 16).double(), torch.ones(len(cells), 4, dtype=torch.bool)
    for cell, home in enumerate(sorted(cells)):
        for slot, row in cells[home].items():
            slots[cell, slot], empty[cell, slot] = x[row], False
    query = slots.amax(1, keepdim=True)
    keys = slots + pooling.pos_embedding
    attended = pooling.self_attn(query, keys, slots, empty if masked else None, need_weights=False)[0]
    assert (out - pooling.norm(attended + query)[:, 0]).abs().max() < 1e-12


@pytest.mark.parametrize("config", (FLAT, TALL), ids=("flat", "tall"))
def test_samples_do_not_mix_and_order_does_not_matter(config: DSVTConfig) -> None:
    model, (features, coordinates) = make(config), scene(config)
    out, pooled = model(features, coordinates, 2)
    for number in range(2):
        own, alone = coordinates[:, 0] == number, coordinates.clone()
        alone[:, 0] = 0
        single, _ = model(features[own], alone[own], 1)
        assert (single - out[pooled[:, 0] == number]).abs().max() < 1e-12
    mixed = torch.randperm(len(features), generator=torch.Generator().manual_seed(2))
    moved, places = model(features[mixed], coordinates[mixed], 2)
    expected = (out[mixed], coordinates[mixed]) if config is FLAT else (out, pooled)
    assert (moved - expected[0]).abs().max() < 1e-12 and torch.equal(places, expected[1])


def test_bfloat16_autocast() -> None:
    model, (features, coordinates) = make(TALL).float(), scene(TALL)
    with torch.no_grad():
        expected, _ = model(features.float(), coordinates, 2)
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = model(features.float(), coordinates, 2)
    assert (out - expected).abs().mean() < 0.02 * expected.std()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = DSVT(TALL).train()
    features, coordinates = scene(TALL)
    out, pooled = model(features.float(), coordinates, 2)
    assert not pooled[:, 1].any() and int(pooled[:, 3].max()) < TALL.shapes[-1][0]
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def published_features(vfe: DynamicVFE, points: Tensor, batch: Tensor) -> dict[tuple, Tensor]:
    """Return the features of each voxel (batch, x, y, z), voxel by voxel."""
    lower, size = (torch.tensor(values, dtype=torch.float64) for values in (vfe.grid.lower, vfe.grid.size))
    members: dict[tuple, list[int]] = {}
    for row, (point, sample) in enumerate(zip(points, batch.tolist(), strict=True)):
        place = ((point[:3] - lower) / size).floor().long().tolist()
        if all(0 <= one < extent for one, extent in zip(place, vfe.grid.shape, strict=True)):
            members.setdefault((sample, *place), []).append(row)
    found = {}
    layers: Any = vfe.pfn_layers
    for voxel, rows in sorted(members.items()):
        own = points[rows]
        centre = (torch.tensor(voxel[1:]) + 0.5) * size + lower
        x = torch.cat([own, own[:, :3] - own[:, :3].mean(0), own[:, :3] - centre], 1)
        for layer in layers:
            x = layer.norm(layer.linear(x)).relu()
            largest = x.amax(0)
            x = torch.cat([x, largest.expand_as(x)], 1)
        found[voxel] = largest
    return found


def test_voxel_features_equal_a_loop_over_voxels() -> None:
    torch.manual_seed(0)
    grid = VoxelGrid((-2.0, -1.0, -1.0), (2.0, 3.0, 2.0), (0.5, 0.5, 1.5))
    vfe = DynamicVFE(grid, 5, 12).double().eval()
    layers: Any = vfe.pfn_layers
    for layer in layers:
        nn.init.normal_(layer.norm.bias)
    points = torch.randn(400, 5, dtype=torch.float64) * 1.5
    batch = torch.randint(2, (400,))
    features, coordinates = vfe(points, batch, 2)
    expected = published_features(vfe, points, batch)
    assert coordinates.tolist() == [[batch, z, y, x] for batch, x, y, z in expected]
    assert (features - torch.stack(list(expected.values()))).abs().max() < 1e-12
    vfe.train()(points, batch, 2)[0].sum().backward()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(vfe))


def test_clear_errors() -> None:
    model = DSVT(FLAT)
    with pytest.raises(ValueError, match="no voxels"):
        model(torch.zeros(0, 16), torch.zeros(0, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=r"\(voxels, 16\)"):
        model(torch.zeros(2, 8), torch.zeros(2, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match="got up to .*160"):
        model(torch.zeros(1, 16), torch.tensor([[0, 0, 0, 160]]), 1)
    with pytest.raises(ValueError, match="points have 3 values, this network takes 4"):
        DynamicVFE(TINY.grid, 4, 8)(torch.zeros(2, 3), torch.zeros(2).int(), 1)
    with pytest.raises(ValueError, match="none of 2 points is inside"):
        DynamicVFE(TINY.grid, 4, 8)(torch.full((2, 4), 99.0), torch.zeros(2).int(), 1)
    with pytest.raises(ValueError, match="a multiple of heads, got 64 and 5"):
        replace(TINY, heads=5)
    with pytest.raises(ValueError, match="at least one stage"):
        replace(TINY, stages=())
    with pytest.raises(ValueError, match="at least 1"):
        StageConfig(1, 0, (6, 6, 1))
    StageConfig(1, 8, (6, 6, 1), shift=(12, 12, 1))
    with pytest.raises(ValueError, match=r"shifts must be at most .* hybrid, \(12, 12, 1\), got \(13, 3, 0\)"):
        StageConfig(1, 8, (6, 6, 1), shift=(13, 3, 0))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_blocks_compile_without_a_break() -> None:
    model = DSVT(FLAT).eval()
    block: Any = model.stage_0[0]  # pyright: ignore[reportIndexIssue]
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for voxels in (300, 200):
        features, coordinates = scene(FLAT, voxels)
        with torch.no_grad():
            positions, layouts = model.plan(coordinates, 0)
            expected = block(features.float(), positions[0], layouts[0])
            assert (compiled(features.float(), positions[0], layouts[0]) - expected).abs().max() < 1e-5

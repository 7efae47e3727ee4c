"""The view from above, the head, its targets, losses and detections."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pointcloud.detection.bev import BEVBackbone, BEVConfig, ResidualBlock
from pointcloud.detection.canvas import to_bev
from pointcloud.detection.coding import cells_of, to_boxes, to_values
from pointcloud.detection.decode import decode
from pointcloud.detection.head import CenterHead, HeadConfig
from pointcloud.detection.loss import detection_losses, distance_iou_loss, focal_loss
from pointcloud.detection.targets import Targets, draw_heatmap, make_targets, peak_radius
from pointcloud.voxels import VoxelGrid
from tests.pointcloud.dsvt.voxel_scenes import random_voxels

GRID = VoxelGrid((-9.6, -4.8, -2.0), (9.6, 4.8, 4.0), (0.48, 0.48, 6.0))  # 40 x 20 cells
HEAD = HeadConfig()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_boxes() -> tuple[Tensor, Tensor]:
    """Return boxes that are far apart, one at each corner of the grid's middle."""
    boxes = torch.tensor(
        [
            [-6.1, 2.3, 0.8, 4.5, 1.8, 1.6, 0.4],
            [5.2, -3.1, 0.9, 0.6, 0.7, 1.8, -2.9],
            [7.7, 3.3, 0.7, 1.7, 0.6, 1.7, 3.0],
            [-8.9, -3.9, 1.4, 7.0, 2.4, 3.0, -1.2],
        ]
    )
    return boxes, torch.tensor([0, 1, 2, 0])


def perfect_outputs(targets: Targets, iou: float = 1.0, head: HeadConfig = HEAD) -> dict[str, Tensor]:
    """Return outputs that say what the targets do."""
    heatmap = targets.heatmap
    outputs = {"heatmap": heatmap.clamp(1e-4, 1 - 1e-4).logit(), "iou": torch.full_like(heatmap[:, :1], 2 * iou - 1)}
    sample, y, x = targets.cells.unbind(1)
    for name, values in zip(head.regression, targets.values.split(list(head.regression.values()), 1), strict=True):
        outputs[name] = heatmap.new_zeros(len(heatmap), values.shape[1], *heatmap.shape[2:])
        outputs[name][sample, :, y, x] = values
    return outputs


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    return (a - b + math.pi).remainder(2 * math.pi) - math.pi


def test_the_canvas_holds_each_pillar_at_its_place() -> None:
    grid = VoxelGrid((0.0, 0.0, 0.0), (5.0, 4.0, 1.0), (1.0, 1.0, 1.0))
    coordinates = random_voxels(grid.shape, 25)
    features = torch.randn(len(coordinates), 3, requires_grad=True)
    canvas = to_bev(features, coordinates, 2, grid)
    assert canvas.shape == (2, 3, 4, 5) and int((canvas != 0).any(1).sum()) == len(coordinates)
    batch, _, y, x = coordinates.long().T
    assert torch.equal(canvas[batch, :, y, x], features)
    canvas.square().sum().backward()
    assert features.grad is not None and torch.equal(features.grad, 2 * features)
    with pytest.raises(ValueError, match="z up to 1"):
        to_bev(features, coordinates + torch.tensor([0, 1, 0, 0]), 2, grid)


def test_published_parameter_counts() -> None:
    backbone = BEVBackbone(BEVConfig(), 192)
    assert count(backbone) == 5_479_680 and backbone.channels == 384
    assert count(CenterHead(HEAD, 384)) == 450_188


def test_every_scale_comes_back_to_the_size_of_the_input() -> None:
    config = BEVConfig((0, 1, 0), (1, 2, 2), (4, 6, 8), (1, 2, 4), (3, 5, 7))
    backbone = BEVBackbone(config, 2).eval()
    x = torch.randn(2, 2, 12, 20, generator=torch.Generator().manual_seed(0))
    out = backbone(x)
    assert out.shape == (2, 15, 12, 20)
    assert torch.allclose(backbone(x[1:]), out[1:], atol=1e-6)
    head = CenterHead(HEAD, 15).eval()
    outputs = head(out)
    assert {name: tuple(part.shape[1:]) for name, part in outputs.items()}["heatmap"] == (3, 12, 20)
    assert sum(part.shape[1] for part in outputs.values()) == 12
    with pytest.raises(ValueError, match="does not undo the strides"):
        BEVConfig(upsample=(1, 2, 2))
    with pytest.raises(ValueError, match="differ in length"):
        BEVConfig(blocks=(1, 2))
    with pytest.raises(ValueError, match="give one a class"):
        HeadConfig(classes=("vehicle",))


def test_a_residual_block_with_silent_convolutions_rectifies_its_shortcut() -> None:
    block = ResidualBlock(4, 4).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_a_new_head_expects_an_object_in_a_tenth_of_the_cells() -> None:
    torch.manual_seed(0)
    heatmap = CenterHead(HeadConfig(channels=8), 6)(torch.randn(2, 6, 16, 16))["heatmap"].sigmoid()
    assert heatmap.mean().item() == pytest.approx(0.1, abs=0.05)


def test_boxes_come_back_from_their_values() -> None:
    boxes, _ = make_boxes()
    back = to_boxes(to_values(boxes, GRID), cells_of(boxes, GRID), GRID)
    assert (back[:, :6] - boxes[:, :6]).abs().max() < 1e-5
    assert angle_between(back[:, 6], boxes[:, 6]).abs().max() < 1e-6
    assert ((to_values(boxes, GRID)[:, :2] >= 0) & (to_values(boxes, GRID)[:, :2] < 1)).all()


@pytest.mark.parametrize("axis", [False, True])
def test_headings_come_back_within_half_a_turn(axis: bool) -> None:
    boxes = make_boxes()[0][:1].repeat(49, 1)
    boxes[:, 6] = torch.linspace(-math.pi, math.pi, 49)
    headings = to_boxes(to_values(boxes, GRID, axis), cells_of(boxes, GRID), GRID)[:, 6]
    assert angle_between(headings, boxes[:, 6]).abs().max() < 1e-5
    assert (headings >= -math.pi).all() and (headings < math.pi).all()


def test_the_axis_gives_the_line_and_the_heading_only_the_front() -> None:
    boxes, labels = make_boxes()
    head = HeadConfig(axis=True)
    targets = make_targets([boxes], [labels], head, GRID)
    outputs = perfect_outputs(targets, head=head)
    sample, y, x = targets.cells.unbind(1)
    weak = boxes[:, 6] + torch.tensor([1.4, -1.4, 0.7, -0.7])  # far off, but on the right side
    outputs["rot"][sample, :, y, x] = 0.01 * torch.stack([weak.cos(), weak.sin()], 1)
    found = decode(outputs, head, GRID)[0]
    order = torch.cdist(found.boxes[:, :3], boxes[:, :3]).argmin(1)
    assert angle_between(found.boxes[:, 6], boxes[order, 6]).abs().max() < 1e-4
    outputs["rot"] *= -1
    back = decode(outputs, head, GRID)[0]
    turned = angle_between(back.boxes[:, 6], found.boxes[:, 6]).abs()
    assert torch.allclose(turned, torch.full_like(turned, math.pi), atol=1e-4)
    reverse = boxes + torch.eye(7)[6] * math.pi
    lines = [to_values(either, GRID, axis=True)[:, 8:] for either in (boxes, reverse)]
    assert torch.allclose(*lines, atol=1e-5)
    assert detection_losses(outputs, targets, head, GRID)["boxes"] > 0
    assert detection_losses(perfect_outputs(targets, head=head), targets, head, GRID)["boxes"] == 0


def test_radius_of_peaks() -> None:
    """By hand for 9 x 4 cells: the third case, 0.4 r^2 - 2.6 r - 32.4 = 0, is the least."""
    root = (-2.6 + math.sqrt(2.6**2 + 4 * 0.4 * 32.4)) / 2
    assert peak_radius(torch.tensor([9.0]), torch.tensor([4.0]), 0.1).item() == pytest.approx(root, rel=1e-5)


def test_heatmap_equals_one_drawn_cell_by_cell() -> None:
    boxes, labels = make_boxes()
    boxes = torch.cat([boxes, boxes[:1] + torch.tensor([1.0, 0.5, 0, 0, 0, 0, 0])])  # near another of its class
    labels = torch.cat([labels, labels[:1]])
    heatmap = draw_heatmap(boxes, labels, HEAD, GRID)
    expected = torch.zeros(3, 20, 40, dtype=torch.float64)
    for box, label in zip(boxes.double(), labels, strict=True):
        length, width = (box[3:5] / 0.48).tolist()
        radius = max(2, int(peak_radius(torch.tensor([length]), torch.tensor([width]), 0.1)))
        row, column = math.floor((box[1] + 4.8) / 0.48), math.floor((box[0] + 9.6) / 0.48)
        for y in range(max(0, row - radius), min(20, row + radius + 1)):
            for x in range(max(0, column - radius), min(40, column + radius + 1)):
                value = math.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                expected[label, y, x] = max(expected[label, y, x].item(), value)
    assert (heatmap - expected).abs().max() < 1e-6 and (heatmap == 1).sum() == 5


def test_decoding_targets_gives_the_boxes_they_were_made_of() -> None:
    boxes, labels = make_boxes()
    outside = torch.tensor([[9.7, 0, 0, 1, 1, 1, 0]])
    every = [torch.cat([boxes, outside]), boxes[:0], boxes[1:2]]
    classes = [torch.cat([labels, labels[:1]]), labels[:0], labels[1:2]]
    found = decode(perfect_outputs(make_targets(every, classes, HEAD, GRID)), HEAD, GRID)
    assert [len(one.boxes) for one in found] == [4, 0, 1]
    order = torch.cdist(found[0].boxes[:, :3], boxes[:, :3]).argmin(1)
    assert order.sort().values.tolist() == [0, 1, 2, 3] and torch.equal(found[0].labels, labels[order])
    assert (found[0].boxes[:, :6] - boxes[order, :6]).abs().max() < 1e-4
    assert angle_between(found[0].boxes[:, 6], boxes[order, 6]).abs().max() < 1e-4
    assert found[0].scores.min() > 0.99 and (found[0].scores.diff() <= 0).all()


def test_scores_are_rectified_by_the_predicted_overlap() -> None:
    boxes, labels = make_boxes()
    outputs = perfect_outputs(make_targets([boxes], [labels], HEAD, GRID), iou=0.5)
    outputs["heatmap"] = outputs["heatmap"].where(outputs["heatmap"] < 9, torch.tensor(0.8).logit())
    found = decode(outputs, HEAD, GRID)[0]
    power = torch.tensor(HEAD.rectifier)[found.labels]
    assert torch.allclose(found.scores, 0.8 ** (1 - power) * 0.5**power, atol=1e-4)
    assert len(decode(outputs, HEAD, GRID, threshold=0.58)[0].boxes) == int((found.scores >= 0.58).sum()) < 4
    outputs["heatmap"][:, 0] -= 4.0  # vehicles have peaks of 0.07, but scores of 0.27
    assert set(decode(outputs, HEAD, GRID)[0].labels.tolist()) == {1, 2}
    assert len(decode(outputs, HeadConfig(peak_threshold=0.05), GRID)[0].boxes) == 4
    assert len(decode(outputs, HEAD, GRID, threshold=0.25)[0].boxes) == 4  # what was asked for is not held back
    assert len(decode(outputs, HEAD, GRID, threshold=0.3)[0].boxes) == 2
    few = HeadConfig(most_peaks=1, peak_threshold=0.05)
    assert len(decode(outputs, few, GRID)[0].boxes) == 1


def test_of_overlapping_boxes_of_a_class_the_better_stays() -> None:
    box = torch.tensor([[0.1, 0.1, 0.8, 4.5, 1.8, 1.6, 0.0]])
    near = box + torch.tensor([0.96, 0, 0, 0, 0, 0, 0])  # two cells away: a peak of its own, IoU 0.65
    for classes, kept in (([2, 2], 1), ([2, 0], 2)):
        labels = torch.tensor(classes)
        targets = make_targets([torch.cat([box, near])], [labels], HEAD, GRID)
        outputs = perfect_outputs(targets)
        outputs["heatmap"][0, labels[1], 10, 22] -= 2
        found = decode(outputs, HEAD, GRID)[0]
        assert len(found.boxes) == kept and torch.allclose(found.boxes[0, :6], box[0, :6], atol=1e-4)


def test_focal_loss_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64) * 3
    heatmap = torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    heatmap[0, 0, 1, 1] = heatmap[0, 1, 2, 3] = 1
    total = 0.0
    for logit, wanted in zip(logits.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= (1 - p) ** 2 * math.log(p) if wanted == 1 else (1 - wanted) ** 4 * p**2 * math.log(1 - p)
    assert focal_loss(logits, heatmap).item() == pytest.approx(total / 2, rel=1e-12)
    extreme = focal_loss(torch.tensor([[[[200.0, -200.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
    assert extreme.item() == pytest.approx(400)  # finite, where a rounded probability would give infinity


def test_distance_iou_of_hand_computed_pairs() -> None:
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0.3]])
    shifted = torch.tensor([[1.0, 0, 0, 2, 2, 2, 0]])
    apart = torch.tensor([[4.0, 0, 0, 2, 2, 2, 0]])
    loss = distance_iou_loss(box.repeat(3, 1), torch.cat([box, shifted, apart]))
    assert torch.allclose(loss, torch.tensor([0, 1 - 4 / 12 + 1 / 17, 1 + 16 / 44]))


def test_losses_vanish_where_outputs_equal_targets_and_lead_there() -> None:
    boxes, labels = make_boxes()
    targets = make_targets([boxes, boxes[:0]], [labels, labels[:0]], HEAD, GRID)
    losses = detection_losses(perfect_outputs(targets), targets, HEAD, GRID)
    assert all(losses[name] < 1e-5 for name in ("boxes", "overlap", "iou")) and losses["heatmap"] < 0.5
    empty = make_targets([boxes[:0]], [labels[:0]], HEAD, GRID)
    outputs = {name: torch.randn_like(part[:1]).requires_grad_() for name, part in perfect_outputs(targets).items()}
    losses = detection_losses(outputs, empty, HEAD, GRID)
    assert losses["heatmap"] > 0 and losses["boxes"] == losses["overlap"] == losses["iou"] == 0
    sum(losses.values(), torch.zeros(())).backward()


def test_the_overlap_branch_learns_the_overlap_of_its_box() -> None:
    boxes, labels = make_boxes()
    targets = make_targets([boxes[:1]], [labels[:1]], HEAD, GRID)
    outputs = perfect_outputs(targets, iou=0.25)
    outputs["center_z"] += 0.8  # half of the height: an overlap of a third
    outputs = {name: part.requires_grad_() for name, part in outputs.items()}
    loss = detection_losses(outputs, targets, HEAD, GRID)["iou"]
    assert loss.item() == pytest.approx(abs(2 * 0.25 - 2 / 3), abs=1e-4)
    loss.backward()
    assert outputs["iou"].grad is not None and outputs["iou"].grad.abs().sum() == 1
    assert outputs["center_z"].grad is None or not outputs["center_z"].grad.any()

"""Whole sparse 3D networks with random weights: spconv's layers beside the same converted to ours.

On a CPU spconv gets one thread, the only setting in which its sums are right; ours runs on one and on two. Building the
pairs is inside the time.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.cases import Cases
from benchmarks.rows import Row, installed, origin, show
from benchmarks.sparse_conv import SHAPE, leave_no_stream, surface
from benchmarks.timing import median_seconds

COLUMNS = ("case", "voxels", "ms_spconv", "ms_one_thread", "ms_two_threads", "speedup_one", "speedup_two", "max_error")


def build_minkunet(spconv: Any, channels: tuple[int, ...] = (32, 32, 64, 128, 256, 256, 128, 96, 96)) -> nn.Module:
    """Return MinkUNet18 (Choy et al., CVPR 2019): four stages down and four up, two residual blocks each."""
    return _MinkUNet(spconv, channels)


def build_backbone8x(spconv: Any) -> nn.Module:
    """Return the shapes of OpenPCDet's VoxelResBackBone8x: residual stages of 16 to 128 channels, three strides."""
    stem = _convolution(spconv.SubMConv3d, 4, 16, 3, padding=1, indice_key="0")
    layers = [stem, _Residual(spconv, 16, "0"), _Residual(spconv, 16, "0")]
    for stage, (before, after) in enumerate(((16, 32), (32, 64), (64, 128)), 1):
        key = str(stage)
        layers.append(_convolution(spconv.SparseConv3d, before, after, 3, stride=2, padding=1, indice_key=f"down{key}"))
        layers += [_Residual(spconv, after, key), _Residual(spconv, after, key)]
    out = {"stride": (2, 1, 1), "padding": 0, "indice_key": "out"}
    return nn.Sequential(*layers, _convolution(spconv.SparseConv3d, 128, 128, (3, 1, 1), **out))


NETWORKS: dict[str, Callable[[Any], nn.Module]] = {"MinkUNet18": build_minkunet, "VoxelResBackBone8x": build_backbone8x}


class _Normed(nn.Module):
    """A convolution, batch norm and, where asked, ReLU."""

    def __init__(self, convolution: nn.Module, channels: int, relu: bool):
        super().__init__()
        self.convolution, self.norm, self.relu = convolution, nn.BatchNorm1d(channels), relu

    def forward(self, x: Any) -> Any:
        x = self.convolution(x)
        features = self.norm(x.features)
        return x.replace_feature(features.relu() if self.relu else features)


def _convolution(kind: Any, before: int, after: int, kernel: Any, relu: bool = True, **options: Any) -> nn.Module:
    return _Normed(kind(before, after, kernel, bias=False, **options), after, relu)


class _Residual(nn.Module):
    """Two submanifold convolutions and a shortcut."""

    def __init__(self, spconv: Any, channels: int, key: str, before: int | None = None):
        super().__init__()
        before = before or channels
        options = {"padding": 1, "indice_key": key}
        self.first = _convolution(spconv.SubMConv3d, before, channels, 3, **options)
        self.second = _convolution(spconv.SubMConv3d, channels, channels, 3, relu=False, **options)
        self.shortcut = nn.Identity() if before == channels else nn.Linear(before, channels, bias=False)

    def forward(self, x: Any) -> Any:
        out = self.second(self.first(x))
        return out.replace_feature((out.features + self.shortcut(x.features)).relu())


class _MinkUNet(nn.Module):
    def __init__(self, spconv: Any, channels: tuple[int, ...]):
        super().__init__()
        stem, down, up = channels[0], channels[:5], channels[4:]
        self.stem = nn.Sequential(
            _convolution(spconv.SubMConv3d, 4, stem, 3, padding=1, indice_key="0"),
            _convolution(spconv.SubMConv3d, stem, stem, 3, padding=1, indice_key="0"),
        )
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, (before, after) in enumerate(zip(down, down[1:], strict=False), 1):
            smaller = _convolution(spconv.SparseConv3d, before, before, 2, stride=2, indice_key=f"down{stage}")
            blocks = _Residual(spconv, after, str(stage), before), _Residual(spconv, after, str(stage))
            self.down.append(nn.Sequential(smaller, *blocks))
        for place, (before, after) in enumerate(zip(up, up[1:], strict=False)):
            stage = 3 - place
            self.up.append(_convolution(spconv.SparseInverseConv3d, before, after, 2, indice_key=f"down{stage + 1}"))
            both = after + down[stage]
            blocks = _Residual(spconv, after, str(stage), both), _Residual(spconv, after, str(stage))
            self.merge.append(nn.Sequential(*blocks))

    def forward(self, x: Any) -> Any:
        levels = [self.stem(x)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        x = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(x.replace_feature(torch.cat([x.features, levels.pop().features], 1)))
        return x


def measure(name: str, voxels: int, backward: bool, repeats: int) -> Row:
    """Return the row of a network, forward or forward and backward, in training mode as to batch norm."""
    import spconv.pytorch as spconv

    import pointcloud

    leave_no_stream("spconv")
    torch.manual_seed(0)
    theirs = NETWORKS[name](spconv)
    ours = pointcloud.convert(deepcopy(theirs))
    places = surface(voxels)
    features = torch.randn(len(places), 4)

    def run(network: nn.Module) -> Any:
        with torch.set_grad_enabled(backward):
            out = network(spconv.SparseConvTensor(features, places, list(SHAPE), 1))
            if backward:
                network.zero_grad()
                out.features.square().mean().backward()
        return out

    before = torch.get_num_threads()
    times: dict[str, float] = {}
    try:
        for column, network, threads in (
            ("ms_spconv", theirs, 1), ("ms_one_thread", ours, 1), ("ms_two_threads", ours, 2)
        ):  # fmt: skip
            torch.set_num_threads(threads)
            times[column] = median_seconds(lambda network=network: run(network), "cpu", repeats) * 1e3
        torch.set_num_threads(1)
        error = (_in_order(run(theirs)) - _in_order(run(ours))).abs().max().item()
    finally:
        torch.set_num_threads(before)
    about = {"network": name, "backward": backward, "dtype": "float32", "voxels": len(places)}
    return origin("cpu") | about | times | {
        "speedup_one": times["ms_spconv"] / times["ms_one_thread"],
        "speedup_two": times["ms_spconv"] / times["ms_two_threads"], "max_error": error,
    }  # fmt: skip


def _in_order(x: Any) -> Tensor:
    """Return features by place: strided convolutions of ours and of spconv put them out in other orders."""
    places = x.indices.long()
    key = (places[:, 1] * SHAPE[1] + places[:, 2]) * SHAPE[2] + places[:, 3]
    return x.features.detach()[key.argsort()]


def main(
    voxels: int = 20_000,
    repeats: int = 3,
    seconds: Annotated[float, typer.Option(help="no row starts after that")] = 3600.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="rows; a run goes on where one stopped")] = None,
) -> None:
    """Print a table of whole networks beside spconv, where it is installed (extra `bench`), and write the rows."""
    if not installed("spconv", "spconv"):
        return
    cases = Cases(json_file, "cpu", seconds, {"voxels_asked": voxels})
    for name in NETWORKS:
        for backward in (False, True):
            case = f"{name}, forward{'+backward' if backward else ''}"
            cases.run(case, lambda n=name, b=backward: measure(n, voxels, b, repeats))
    show(cases.rows, COLUMNS)


if __name__ == "__main__":
    typer.run(main)

"""Time of sparse convolution against spconv on one thread, the only setting in which its CPU sums are right."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.attention import best_of
from benchmarks.rows import origin, show
from sparse_kernels.sparse_conv import sparse_conv, strided_map, submanifold_map

COLUMNS = ("op", "dtype", "voxels", "channels", "pairs_cached", "ms_spconv", "ms_ours", "speedup", "max_error")
SHAPE = (40, 480, 480)
KERNEL = 3


def surface(voxels: int) -> Tensor:
    """Return coordinates (batch z y x) of a bumpy ground with walls, as a spinning LiDAR sees them."""
    generator = torch.Generator().manual_seed(0)
    side = min(SHAPE[1], int((voxels * 2.2) ** 0.5))
    y, x = (torch.randint(side, (3 * voxels,), generator=generator) for _ in range(2))
    ground = 6 + 3 * torch.sin(x / 17) * torch.cos(y / 23) + torch.rand(3 * voxels, generator=generator)
    wall = ((x // 40 + y // 40) % 7 == 0) & (x % 40 < 2)
    z = torch.where(wall, torch.randint(SHAPE[0], (3 * voxels,), generator=generator).float(), ground).long()
    places = torch.stack([torch.zeros_like(z), z, y, x], 1).unique(dim=0)
    chosen = torch.randperm(len(places), generator=generator)[:voxels]
    return places[chosen].int()


class Ours:
    """A submanifold convolution of ours, and its parts as the benchmark calls them."""

    def __init__(self, coordinates: Tensor, weight: Tensor):
        self.coordinates, self.weight = coordinates, weight
        self.map = submanifold_map(coordinates, SHAPE, KERNEL)

    def pairs(self) -> None:
        submanifold_map(self.coordinates, SHAPE, KERNEL)

    def strided_pairs(self) -> None:
        strided_map(self.coordinates, SHAPE, KERNEL, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return sparse_conv(x, self.weight, self.map)


class Spconv:
    """The same of spconv, at one thread."""

    def __init__(self, coordinates: Tensor, weight: Tensor):
        self.library = importlib.import_module("spconv.pytorch")
        self.ops: Any = importlib.import_module("spconv.pytorch.ops")
        # On a CPU, backward asks for a CUDA stream before it looks where the tensors are.
        self.ops.get_current_stream = lambda: 0
        self.coordinates = coordinates
        channels = weight.shape[0]
        self.layer = self.library.SubMConv3d(channels, channels, KERNEL, bias=False, indice_key="pairs")
        self.layer.weight.data = weight.detach().clone()
        self.weight = self.layer.weight
        self.known = self._tensor(torch.zeros(len(coordinates), channels))
        with one_thread():
            self.known = self.layer(self.known)

    def _tensor(self, x: Tensor) -> Any:
        return self.library.SparseConvTensor(x, self.coordinates, list(SHAPE), 1)

    def pairs(self) -> None:
        self._build(1, submanifold=True)

    def strided_pairs(self) -> None:
        self._build(2, submanifold=False)

    def _build(self, stride: int, submanifold: bool) -> None:
        algorithm = importlib.import_module("spconv.core").ConvAlgo.Native
        axes = ([KERNEL] * 3, [stride] * 3, [1] * 3, [1] * 3, [0] * 3)
        with one_thread():
            self.ops.get_indice_pairs(self.coordinates, 1, list(SHAPE), algorithm, *axes, submanifold)

    def forward(self, x: Tensor) -> Tensor:
        tensor = self._tensor(x)
        tensor.indice_dict = self.known.indice_dict
        return self.layer(tensor).features


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and spconv on one thread: on more, its scatter is a race."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_step(engine: Ours | Spconv, x: Tensor, gradient: Tensor) -> None:
    """Run forward and backward, gradients of features and weights."""
    leaf = x.detach().requires_grad_()
    engine.weight.grad = None
    engine.forward(leaf).backward(gradient)


def measure(voxels: int, channels: int, repeats: int) -> list[dict[str, Any]]:
    """Return rows for forward, forward + backward and bf16 forward, pairs cached and built anew, of one size."""
    generator = torch.Generator().manual_seed(1)
    coordinates = surface(voxels)
    x, gradient = (torch.randn(len(coordinates), channels, generator=generator) for _ in range(2))
    weight = torch.randn(channels, *[KERNEL] * 3, channels, generator=generator) * (13 * channels) ** -0.5
    ours, theirs = Ours(coordinates, weight.clone().requires_grad_()), Spconv(coordinates, weight)
    half = Ours(coordinates, weight.bfloat16())
    with torch.no_grad(), one_thread():
        expected = theirs.forward(x)
    with torch.no_grad():
        errors = {
            engine: (engine.forward(x.to(engine.weight.dtype)) - expected).abs().max().item() for engine in (ours, half)
        }
    measured = []
    for op, engine in (("forward", ours), ("forward+backward", ours), ("forward", half)):
        own, other = _runs(op, engine, x, gradient), _runs(op, theirs, x, gradient)
        for cached in (True, False):
            with one_thread():
                slow = min(_time(other, theirs, cached) for _ in range(repeats))
            fast = min(_time(own, engine, cached) for _ in range(repeats))
            measured.append(
                origin("cpu") | {
                    "op": op, "dtype": str(engine.weight.dtype).removeprefix("torch."), "voxels": len(coordinates),
                    "channels": channels, "pairs": ours.map.pairs(), "pairs_cached": cached,
                    "ms_spconv": slow * 1e3, "ms_ours": fast * 1e3, "speedup": slow / fast, "max_error": errors[engine],
                }
            )  # fmt: skip
    return measured


def _runs(op: str, engine: Ours | Spconv, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    x = x.to(engine.weight.dtype)
    if op == "forward":
        return torch.no_grad()(lambda: engine.forward(x))
    return lambda: train_step(engine, x, gradient)


def _time(run: Callable[[], object], engine: Ours | Spconv, cached: bool) -> float:
    return best_of(run if cached else lambda: (engine.pairs(), run()), "cpu", 1)


def measure_pairs(voxels: int, strided: bool, repeats: int) -> dict[str, Any]:
    """Return the row of building the pairs alone, of a submanifold convolution or of one with stride 2."""
    coordinates = surface(voxels)
    weight = torch.zeros(16, *[KERNEL] * 3, 16)
    ours, theirs = Ours(coordinates, weight), Spconv(coordinates, weight)
    runs = [engine.strided_pairs if strided else engine.pairs for engine in (theirs, ours)]
    slow, fast = (min(best_of(run, "cpu", 1) for _ in range(repeats)) for run in runs)
    return origin("cpu") | {
        "op": "pairs, stride 2" if strided else "pairs", "dtype": "int32", "voxels": len(coordinates), "channels": 0,
        "pairs": None if strided else ours.map.pairs(),
        "pairs_cached": False, "ms_spconv": slow * 1e3, "ms_ours": fast * 1e3, "speedup": slow / fast, "max_error": 0.0,
    }  # fmt: skip


def main(
    quick: Annotated[bool, typer.Option(help="under a minute on two cores")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times beside spconv's and write the rows as JSON; needs spconv (extra `points`)."""
    if importlib.util.find_spec("spconv") is None:
        raise typer.BadParameter("spconv is not installed; pip install spconv")
    repeats = 3 if quick else 7
    rows = [measure_pairs(voxels, strided, repeats) for voxels in (20_000, 100_000) for strided in (False, True)]
    for voxels in (20_000, 100_000):
        for channels in (16, 32, 64, 128):
            rows += measure(voxels, channels, repeats)
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

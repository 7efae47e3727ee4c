"""Time of sparse convolution beside spconv, on a CPU beside ocnn, and on CUDA beside spconv-triton.

On a CPU spconv gets one thread, the only setting in which its sums are right; ocnn, which is torch, gets all. Pairs
of ocnn are an octree and the neighbours of its nodes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.in_ocnn import Octree, reason_against_ocnn
from benchmarks.rows import installed, origin, show
from benchmarks.timing import median_seconds
from sparse_kernels.sparse_conv import sparse_conv, strided_map, submanifold_map

LIBRARIES = {"ms_spconv": ("spconv", "spconv"), "ms_spconv_triton": ("spconv-triton", "spconv_triton")}
PEERS = (*LIBRARIES, "ms_ocnn")
COLUMNS = ("op", "dtype", "voxels", "channels", "pairs_cached", *PEERS, "ms_ours", "speedup", "max_error")
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


class Peer:
    """The same of a library with spconv's interface; on a CPU at one thread."""

    def __init__(self, module: str, coordinates: Tensor, weight: Tensor):
        self.library = importlib.import_module(f"{module}.pytorch")
        self.ops: Any = importlib.import_module(f"{module}.pytorch.ops")
        self.algorithms = importlib.import_module(f"{module}.core").ConvAlgo
        if not coordinates.is_cuda:
            leave_no_stream(module)
        self.coordinates = coordinates
        channels = weight.shape[0]
        self.layer = self.library.SubMConv3d(channels, channels, KERNEL, bias=False, indice_key="pairs")
        self.layer.to(weight.device, weight.dtype).weight.data = weight.detach().clone()
        self.weight = self.layer.weight
        self.known = self._tensor(weight.new_zeros(len(coordinates), channels))
        with one_thread():
            self.known = self.layer(self.known)

    def _tensor(self, x: Tensor) -> Any:
        return self.library.SparseConvTensor(x, self.coordinates, list(SHAPE), 1)

    def pairs(self) -> None:
        self._build(1, submanifold=True)

    def strided_pairs(self) -> None:
        self._build(2, submanifold=False)

    def _build(self, stride: int, submanifold: bool) -> None:
        cuda = self.coordinates.is_cuda
        build = self.ops.get_indice_pairs_implicit_gemm if cuda else self.ops.get_indice_pairs
        algorithm = self.algorithms.MaskImplicitGemm if cuda else self.algorithms.Native
        axes = ([KERNEL] * 3, [stride] * 3, [1] * 3, [1] * 3, [0] * 3)
        with one_thread():
            build(self.coordinates, 1, list(SHAPE), algorithm, *axes, submanifold)

    def forward(self, x: Tensor) -> Tensor:
        tensor = self._tensor(x)
        tensor.indice_dict = self.known.indice_dict
        return self.layer(tensor).features


def leave_no_stream(module: str) -> None:
    """Let spconv run backward on a CPU: it asks for a CUDA stream before it looks where the tensors are."""
    ops: Any = importlib.import_module(f"{module}.pytorch.ops")
    ops.get_current_stream = lambda: 0


def make_octree(coordinates: Tensor, weight: Tensor) -> dict[str, Peer | Octree]:
    """Return ocnn's convolution in the weight's dtype under its column, nothing where it does not run."""
    if coordinates.is_cuda or not installed("ocnn", "ocnn"):
        return {}
    reason = reason_against_ocnn()
    if reason is not None:
        typer.echo(f"ocnn does not run here: {reason}", err=True)
        return {}
    return {"ms_ocnn": Octree(coordinates, weight)}


def make_peers(coordinates: Tensor, weight: Tensor) -> dict[str, Peer | Octree]:
    """Return the other libraries that are installed and run on the device, by the name of their column."""
    peers = make_octree(coordinates, weight)
    for column, (library, module) in list(LIBRARIES.items())[: 2 if coordinates.is_cuda else 1]:
        if installed(library, module):
            try:
                peers[column] = Peer(module, coordinates, weight)
            except Exception as error:  # a build without kernels for this device says so in many ways
                typer.echo(f"{library} does not run here: {error}", err=True)
    return peers


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and spconv on one thread: on more, its scatter is a race."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_step(engine: Ours | Peer | Octree, x: Tensor, gradient: Tensor) -> None:
    """Run forward and backward, gradients of features and weights."""
    leaf = x.detach().requires_grad_()
    engine.weight.grad = None
    engine.forward(leaf).backward(gradient)


def measure(voxels: int, channels: int, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Return rows for forward, forward + backward and forward in half precision, pairs cached and built anew.

    Half precision is bfloat16 on a CPU, where spconv runs in float32, and float16 on CUDA, where all do.
    """
    generator = torch.Generator().manual_seed(1)
    coordinates = surface(voxels).to(device)
    x, gradient = (torch.randn(len(coordinates), channels, generator=generator).to(device) for _ in range(2))
    weight = (torch.randn(channels, *[KERNEL] * 3, channels, generator=generator) * (13 * channels) ** -0.5).to(device)
    ours, peers = Ours(coordinates, weight.clone().requires_grad_()), make_peers(coordinates, weight)
    half = Ours(coordinates, weight.half() if device != "cpu" else weight.bfloat16())
    half_peers = (
        peers | make_octree(coordinates, half.weight) if device == "cpu" else make_peers(coordinates, half.weight)
    )
    exact = sparse_conv(x.double(), weight.double(), ours.map)
    measured = []
    for op, engine, others in (
        ("forward", ours, peers), ("forward+backward", ours, peers), ("forward", half, half_peers)
    ):  # fmt: skip
        with torch.no_grad():
            error = (engine.forward(x.to(engine.weight.dtype)) - exact).abs().max().item()
        for cached in (True, False):
            times = {"ms_ours": _times(op, engine, x, gradient, cached, repeats)}
            for column, other in others.items():
                times[column] = _times(op, other, x, gradient, cached, repeats)
            measured.append(
                _row(device, op, len(coordinates), times) | {
                    "dtype": str(engine.weight.dtype).removeprefix("torch."), "channels": channels,
                    "pairs": ours.map.pairs(), "pairs_cached": cached, "max_error": error,
                }
            )  # fmt: skip
    return measured


def _times(op: str, engine: Ours | Peer | Octree, x: Tensor, gradient: Tensor, cached: bool, repeats: int) -> float:
    """Return the fewest milliseconds."""
    x, gradient = x.to(engine.weight.dtype), gradient.to(engine.weight.dtype)

    def run() -> None:
        if not cached:
            engine.pairs()
        if op == "forward":
            with torch.no_grad():
                engine.forward(x)
        else:
            train_step(engine, x, gradient)

    return _least(run, engine, repeats)


def _least(run: Callable[[], object], engine: Ours | Peer | Octree, repeats: int) -> float:
    device = engine.coordinates.device.type
    if device == "cpu" and isinstance(engine, Peer):
        with one_thread():
            return min(median_seconds(run, device, 1) for _ in range(repeats)) * 1e3
    return min(median_seconds(run, device, 1) for _ in range(repeats)) * 1e3


def _row(device: str, op: str, voxels: int, times: dict[str, float]) -> dict[str, Any]:
    """Return what all rows have; `speedup` is the fastest other library's time over ours."""
    others = [time for column, time in times.items() if column != "ms_ours"]
    speedup = min(others) / times["ms_ours"] if others else None
    return origin(device) | {"op": op, "voxels": voxels} | dict.fromkeys(PEERS) | times | {"speedup": speedup}


def measure_pairs(voxels: int, strided: bool, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Return the row of building the pairs alone, of a submanifold convolution or of one with stride 2."""
    coordinates = surface(voxels).to(device)
    weight = torch.zeros(16, *[KERNEL] * 3, 16, device=device)
    ours = Ours(coordinates, weight)
    engines: dict[str, Ours | Peer | Octree] = {"ms_ours": ours, **make_peers(coordinates, weight)}
    times = {}
    for column, engine in engines.items():
        if not strided or not isinstance(engine, Octree):  # an octree holds every level already
            run = engine.pairs if isinstance(engine, Octree) or not strided else engine.strided_pairs
            times[column] = _least(run, engine, repeats)
    return _row(device, "pairs, stride 2" if strided else "pairs", len(coordinates), times) | {
        "dtype": "int32", "channels": 0, "pairs": None if strided else ours.map.pairs(), "pairs_cached": False,
        "max_error": 0.0,
    }  # fmt: skip


def main(
    device: str = "cpu",
    quick: Annotated[bool, typer.Option(help="a minute on two cores")] = False,
    voxels: Annotated[int, typer.Option(help="only clouds of so many; 0: of 20,000 and of 100,000")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
) -> None:
    """Print a table of times beside spconv's and ocnn's, where installed (extra `bench`), and write rows as JSON."""
    repeats = 3 if quick else 7
    sizes = (voxels,) if voxels else (20_000, 100_000)
    rows = [measure_pairs(size, strided, repeats, device) for size in sizes for strided in (False, True)]
    for size in sizes:
        for channels in (16, 32, 64, 128):
            rows += measure(size, channels, repeats, device)
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

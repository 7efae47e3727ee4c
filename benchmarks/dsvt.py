"""Time and memory of set attention without repeated voxels beside the published padded form, and of whole backbones.

Both sides share weights, projections' precision and torch's own attention; they differ in what is projected: each
voxel once, or every slot of every padded set. `ms_kernel` is our block-sparse kernel in the middle, for inference.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.rows import origin, show
from benchmarks.timing import median_seconds
from pointcloud.dsvt import DSVT, NUSCENES_PILLAR, WAYMO_PILLAR, WAYMO_VOXEL, DSVTConfig
from pointcloud.dsvt.attention import SetAttention
from pointcloud.dsvt.sets import SetLayout, Sets, partition
from pointcloud.dsvt.windows import split_windows
from sparse_kernels import BlockMap, block_sparse_attention

CONFIGS = {"waymo-pillar": WAYMO_PILLAR, "waymo-voxel": WAYMO_VOXEL, "nuscenes-pillar": NUSCENES_PILLAR}
COLUMNS = (
    "config", "op", "voxels", "repeated", "ms_padded", "ms_ours", "speedup", "ms_kernel", "mb_padded", "mb_ours",
    "max_error",
)  # fmt: skip


def surface(voxels: int, shape: tuple[int, ...]) -> Int[Tensor, "voxels 4"]:
    """Return voxels (batch z y x) that thin out from the centre, as a spinning LiDAR's do: bumpy ground and walls.

    20,000 fill the grid's circle; fewer reach less far at the same density, so that windows hold about as many.
    """
    generator = torch.Generator().manual_seed(0)
    radius, angle, height, noise = torch.rand(4, 8 * voxels, generator=generator)
    radius = radius * min(1.0, (voxels / 20_000) ** 0.5)
    x = shape[0] / 2 * (1 + radius * torch.cos(6.2832 * angle))
    y = shape[1] / 2 * (1 + radius * torch.sin(6.2832 * angle))
    wall = (x // 40 + y // 40) % 5 == 0
    ground = 0.1 + 0.05 * torch.sin(x / 17) * torch.cos(y / 23) + 0.05 * noise
    z = torch.where(wall, height, ground) * shape[2]
    places = torch.stack([torch.zeros_like(z), z, y, x], 1).int().unique(dim=0)
    return places[torch.randperm(len(places), generator=generator)[:voxels]]


class PaddedAttention(SetAttention):
    """The published form: torch's attention on every slot of the padded sets, and one copy of each voxel back."""

    def forward(self, x: Tensor, position: Tensor, layout: SetLayout) -> Float[Tensor, "voxels c"]:
        keys = (x + position)[layout.slots]
        masks = ~layout.present
        out = nn.MultiheadAttention.forward(self, keys, keys, x[layout.slots], masks, need_weights=False)[0]
        return out.flatten(0, 1)[layout.places]


class KernelAttention(SetAttention):
    """Projections once a voxel, and the block-sparse kernel over runs of voxels: nothing is gathered."""

    def __init__(self, channels: int, heads: int, sets: Sets):
        super().__init__(channels, heads, batch_first=True)
        offsets = sets.offsets.int().view(1, 1, -1)
        counts = torch.ones_like(offsets[..., 1:])
        indices = torch.arange(counts.shape[-1], dtype=torch.int32, device=offsets.device).view(1, 1, -1, 1)
        self.block_map, self.order = BlockMap(counts, indices, offsets, offsets), sets.order[0].view(1, 1, -1)

    def forward(self, x: Tensor, position: Tensor, layout: SetLayout) -> Float[Tensor, "voxels c"]:
        cut = 2 * self.embed_dim
        query_key = linear(x + position, self.in_proj_weight[:cut], self.in_proj_bias[:cut])
        value = linear(x, self.in_proj_weight[cut:], self.in_proj_bias[cut:])
        parts = (*query_key.chunk(2, 1), value)
        q, k, v = (part.unflatten(1, (self.num_heads, -1)).transpose(0, 1)[None] for part in parts)
        out = block_sparse_attention(q, k, v, self.block_map, q_order=self.order, kv_order=self.order)
        return self.out_proj(out[0].transpose(0, 1).flatten(1))


def published_layout(sets: Sets) -> SetLayout:
    """Return the first order as the published rows of `set_size` slots, repeats and all."""
    slots, repeats = (part[0] for part in sets.padded())
    flat = (~repeats).flatten().nonzero().flatten()
    places = torch.empty_like(sets.order[0]).index_copy(0, slots.flatten()[flat], flat)
    return SetLayout(slots, ~repeats, places)


def peak_megabytes(run: Callable[[], Any], device: str) -> float:
    """Return the most memory that a run holds beyond what was held before."""
    run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = most = 0
    profiler: Any = profile.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def measure_attention(name: str, config: DSVTConfig, voxels: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of one attention layer, in inference and in training, and of the partition before it."""
    stage, channels, shape = config.stages[0], config.channels, config.shapes[0]
    coordinates = surface(voxels, shape).to(device)

    def make_sets() -> Sets:
        return partition(split_windows(coordinates, shape, *stage.configurations[0]), stage.set_size)

    sets = make_sets()
    layout, published = sets.layouts()[0], published_layout(sets)
    ours, padded = (kind(channels, config.heads, batch_first=True) for kind in (SetAttention, PaddedAttention))
    kernel = KernelAttention(channels, config.heads, sets)
    for module in (ours, padded, kernel):
        module.to(device).load_state_dict(ours.state_dict())
    x, position, gradient = torch.randn(3, len(coordinates), channels, device=device)
    runs = {"ms_ours": (ours, layout), "ms_padded": (padded, published), "ms_kernel": (kernel, layout)}

    def forward(column: str) -> Tensor:
        module, chosen = runs[column]
        with torch.no_grad():
            return module(x, position, chosen)

    def train(column: str) -> None:
        module, chosen = runs[column]
        module(x.detach().requires_grad_(), position, chosen).backward(gradient)

    errors = [(forward(other) - forward("ms_ours")).abs().max().item() for other in ("ms_padded", "ms_kernel")]
    about = {"repeated": 1 - len(coordinates) / published.slots.numel(), "max_error": max(errors)}
    return [
        row(name, "attention", coordinates, forward, list(runs), device, repeats) | about,
        row(name, "attention, training", coordinates, train, ["ms_ours", "ms_padded"], device, repeats) | about,
        row(name, "partition", coordinates, lambda _: make_sets().layouts(), ["ms_ours"], device, repeats),
    ]


def measure_backbone(name: str, config: DSVTConfig, voxels: int, device: str, repeats: int) -> dict[str, Any]:
    """Return the row of a whole backbone; the padded one has our rows, shorter than the published, to attend in."""
    coordinates = surface(voxels, config.shapes[0]).to(device)
    features = torch.randn(len(coordinates), config.channels, device=device)
    ours = DSVT(config).to(device).eval()
    padded = deepcopy(ours)
    for module in padded.modules():
        if type(module) is SetAttention:
            module.__class__ = PaddedAttention
    runs = {"ms_ours": ours, "ms_padded": padded}

    def forward(column: str) -> Tensor:
        with torch.no_grad():
            return runs[column](features, coordinates, 1)[0]

    error = (forward("ms_ours") - forward("ms_padded")).abs().max().item()
    return row(name, "backbone", coordinates, forward, list(runs), device, repeats) | {"max_error": error}


def row(
    config: str,
    op: str,
    coordinates: Tensor,
    run: Callable[[str], Any],
    columns: list[str],
    device: str,
    repeats: int,
) -> dict[str, Any]:
    """Return a row with the times of the columns, the memory of ours and of the padded form, and their ratio."""
    fields: dict[str, Any] = dict.fromkeys(COLUMNS)
    fields |= origin(device) | {"config": config, "op": op, "voxels": len(coordinates), "dtype": "float32"}
    for column in columns:
        fields[column] = median_seconds(lambda column=column: run(column), device, repeats) * 1e3
        if column != "ms_kernel":
            fields[column.replace("ms", "mb")] = peak_megabytes(lambda column=column: run(column), device)
    if "ms_padded" in columns:
        fields["speedup"] = fields["ms_padded"] / fields["ms_ours"]
    return fields


def main(
    quick: Annotated[bool, typer.Option(help="under a minute on two cores: 6,000 voxels only")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the rows go")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Print a table of times beside the padded form and write the rows as JSON."""
    torch.manual_seed(0)
    repeats = 2 if quick else 7
    rows = []
    for name, config in CONFIGS.items():
        for voxels in (6_000,) if quick else (6_000, 20_000):
            rows += measure_attention(name, config, voxels, device, repeats)
            rows.append(measure_backbone(name, config, voxels, device, repeats))
    show(rows, COLUMNS, json_file)


if __name__ == "__main__":
    typer.run(main)

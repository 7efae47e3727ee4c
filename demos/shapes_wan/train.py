"""Train the transformer and the text encoder of shapes-wan on pools of latents."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from demos.shapes_wan.checkpoint import load_checkpoint, save_checkpoint
from demos.shapes_wan.forms import form_weights
from demos.shapes_wan.latents import latent_length
from demos.shapes_wan.model import build_text_encoder, build_tokenizer, build_transformer, embed_captions
from demos.shapes_wan.muon import Muon
from demos.shapes_wan.reader import Reader
from demos.shapes_wan.scenes import parse_caption
from demos.shapes_wan.subset import at_frames, choose_frames, kept_grid

MOST_VIDEOS = 8  # in a step
LOSSES = ("loss", "frame", "row", "column", "read")


class Generator(nn.Module):
    """The trained parts, as one module: captions and noisy latents in, velocity out."""

    def __init__(self, z_dim: int):
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer))
        self.transformer = build_transformer(z_dim)

    def forward(self, latents: Tensor, sigma: Tensor, captions: list[str], text_length: int) -> Tensor:
        """Return the velocity (batch c t h w) that leads from data to noise."""
        text = embed_captions(self.tokenizer, self.text_encoder, captions, text_length)
        return self.transformer(latents, sigma * 1000, text, return_dict=False)[0]


def flow_matching_loss(
    model: Generator, latents: Tensor, captions: list[str], weights: Tensor, shift: float, text_length: int
) -> Tensor:
    """Return the weighted rectified-flow loss at logit-normal noise levels, moved up by `shift` (SD3, section 3.1)."""
    uniform = torch.sigmoid(torch.randn(len(latents), device=latents.device))
    sigma = shift * uniform / (1 + (shift - 1) * uniform)
    noise = torch.randn_like(latents)
    level = sigma.view(-1, 1, 1, 1, 1)
    velocity = model(latents + level * (noise - latents), sigma, captions, text_length)
    return (weights * (velocity.float() - (noise - latents)).square()).mean()


class Locator(nn.Module):
    """Reads every token's place in the grid from the states of a middle block, as an auxiliary task.

    Rotary embedding tells tokens only how far apart they are. Where the frame's borders lie must be found out from
    noise, which the denoising loss alone teaches slowly, and without it no shape knows where to be.
    """

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        config: Any = transformer.config
        self.read = nn.Linear(config.num_attention_heads * config.attention_head_dim, 3)
        self.states: Tensor | None = None
        transformer.blocks[len(transformer.blocks) // 2].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.states = output

    def loss(self, axes: list[Tensor]) -> Float[Tensor, " 3"]:
        """Return the mean squared errors of frame, row and column, each in [-1, 1], in the latest forward pass."""
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        assert self.states is not None
        return (self.read(self.states).float() - places.to(self.states.device)).square().mean((0, 1))


def make_optimizers(
    model: Generator, helpers: list[nn.Module], learning_rate: float, bfloat16: bool = False
) -> tuple[Muon, torch.optim.AdamW]:
    """Return Muon for the blocks' matrices and AdamW for everything else."""
    hidden = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in hidden}
    rest = [p for p in (p for module in (model, *helpers) for p in module.parameters()) if id(p) not in chosen]
    return Muon(hidden, learning_rate, bfloat16=bfloat16), torch.optim.AdamW(
        rest, learning_rate, (0.9, 0.98), weight_decay=0.0
    )


def learning_rate_factor(step: int, steps: int, decay: float, warmup: int = 40) -> float:
    """Rise for `warmup` steps, stay, and fall towards zero over the last `decay` share of the steps."""
    return min(1, (step + 1) / warmup, (steps - step) / max(1, decay * steps))


def has_small_corners(caption: str) -> bool:
    """Return whether a small square or triangle is in the scene: the forms that are learned last."""
    return any(actor.size == "small" and actor.shape != "circle" for actor in parse_caption(caption).actors)


class Pools:
    """All shards of one geometry with enough latent frames, in random order, each latent normalised per channel."""

    def __init__(self, folder: Path, geometry: str, frames: int, seed: int, corners: int = 1):
        self.folder, self.geometry, self.frames, self.random = folder, geometry, frames, random.Random(seed)
        self.corners = corners
        self.waiting: list[tuple[Tensor, list[str], Tensor]] = []
        stats = torch.load(folder / "stats.pt")
        self.mean, self.std = (stats[name].view(-1, 1, 1, 1) for name in ("mean", "std"))

    def batch(self, drop_caption: float) -> tuple[Tensor, list[str], Tensor]:
        """Return latents (b c t h w) of one shard, their captions, some emptied for guidance, and their frames."""
        if not self.waiting:
            for path in sorted(self.folder.glob(f"{self.geometry}-*.pt")):  # new shards join every epoch
                pool = torch.load(path, weights_only=True)
                if len(pool["frames"]) >= self.frames:
                    self.waiting += list(self._batches(pool))
            if not self.waiting:
                raise FileNotFoundError(f"no {self.geometry} pool in {self.folder} has {self.frames} latent frames")
            self.random.shuffle(self.waiting)
        latents, captions, frames = self.waiting.pop()
        latents = (latents.float() - self.mean) / self.std
        return latents, ["" if self.random.random() < drop_caption else caption for caption in captions], frames

    def _batches(self, pool: dict[str, Any]) -> Iterator[tuple[Tensor, list[str], Tensor]]:
        more = self.corners > 1
        times = [self.corners if more and has_small_corners(caption) else 1 for caption in pool["captions"]]
        order = self.random.sample(range(len(times)), sum(times), counts=times)
        size = min(MOST_VIDEOS, len(order))
        for first in range(0, len(order) - size + 1, size):
            chosen = order[first : first + size]
            yield pool["latents"][chosen], [pool["captions"][index] for index in chosen], torch.tensor(pool["frames"])


def main(
    output: Annotated[Path, typer.Option(help="checkpoint folder of this stage")],
    mix: Annotated[str, typer.Option(help="GEOMETRY:FRAMES, ...: each step takes one, and so many latent frames")],
    latents: Annotated[Path, typer.Option(help="folder of the pools")] = Path("runs/latents"),
    start_from: Annotated[Path | None, typer.Option(help="checkpoint folder of the stage before")] = None,
    steps: int = 3000,
    tokens: Annotated[int, typer.Option(help="a step's tokens: as many videos as fit, at least one")] = 8448,
    learning_rate: float = 2e-3,
    decay: Annotated[float, typer.Option(help="last share of the steps, over which the rate falls")] = 0.3,
    shift: float = 5.0,
    forms: Annotated[float, typer.Option(help="share of the loss at tokens that another shape would change")] = 0.0,
    corners: Annotated[int, typer.Option(help="times that a video with a small square or triangle is drawn")] = 1,
    auxiliary: Annotated[float, typer.Option(help="weight of the auxiliary tasks of reading and locating")] = 0.3,
    drop_caption: float = 0.1,
    long_text: Annotated[float, typer.Option(help="share of steps with 128 or 512 text tokens")] = 0.0,
    ema_decay: float = 0.995,
    bfloat16: Annotated[bool, typer.Option(help="compute in bfloat16; fast from AVX512_BF16, AMX and CUDA on")] = False,
    compile_blocks: bool = False,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train, with a checkpoint every 50 steps from which the same command goes on."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts_of_mix = [(name, int(count)) for name, count in (part.split(":") for part in mix.split(","))]
    z_dim = len(torch.load(latents / "stats.pt")["mean"])
    model = Generator(z_dim).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    locator, reader = Locator(model.transformer).to(device), Reader(model.tokenizer).to(device)
    if start_from is not None:
        load_checkpoint(start_from, required=True, model=model, average=average)
    muon, adamw = make_optimizers(model, [locator, reader], learning_rate, bfloat16)
    parts: dict[str, Any] = dict(model=model, average=average, locator=locator, reader=reader, muon=muon, adamw=adamw)
    first = load_checkpoint(output, **parts)
    choice = random.Random(first)
    pools = {part: Pools(latents, *part, seed=first, corners=corners) for part in set(parts_of_mix)}
    torch.manual_seed(first)
    start, recent = time.perf_counter(), []
    if compile_blocks:
        for block in model.transformer.blocks:
            block.compile(dynamic=False)
    for step in range(first, steps):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = learning_rate * learning_rate_factor(step, steps, decay)
        geometry, count = choice.choice(parts_of_mix)
        videos, captions, places = pools[geometry, count].batch(drop_caption)
        length = latent_length(geometry)
        videos = videos[: max(1, tokens // (count * videos[0, 0, 0].numel()))]
        captions = captions[: len(videos)]
        text_length = choice.choice((128, 512)) if choice.random() < long_text else 24
        picked = choose_frames(len(places), count, choice)
        part, kept = videos[:, :, picked].to(device), places[picked]
        weights = form_weights(captions, kept / (length - 1), part.shape[3], part.shape[4], forms).to(device)
        with at_frames(model.transformer.rope, length, kept), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = flow_matching_loss(model, part, captions, weights, shift, text_length)
            place_loss = locator.loss(kept_grid(kept, length, part))
            read_loss = reader.loss(model.text_encoder, choice)
        (loss + auxiliary * (place_loss.mean() + read_loss)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        keep = min(ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        recent.append((loss.item(), *place_loss.tolist(), read_loss.item()))
        if step % 20 == 19:
            means = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
            said = " ".join(f"{name} {mean:.4f}" for name, mean in zip(LOSSES, means, strict=True))
            print(f"step {step + 1} {said} {time.perf_counter() - start:.0f} s", flush=True)
            recent.clear()
        if step % 50 == 49 or step + 1 == steps:
            save_checkpoint(output, step + 1, **parts)


if __name__ == "__main__":
    typer.run(main)

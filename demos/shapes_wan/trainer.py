"""The trained parts of shapes-wan, their losses, and the trainer that every training shares."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from demos.shapes_wan.checkpoint import load_checkpoint, save_checkpoint
from demos.shapes_wan.forms import form_weights
from demos.shapes_wan.model import build_text_encoder, build_tokenizer, build_transformer, embed_captions
from demos.shapes_wan.muon import Muon
from demos.shapes_wan.pools import Batch
from demos.shapes_wan.reader import Reader
from demos.shapes_wan.subset import at_frames, choose_frames, kept_grid

LOSSES = ("loss", "frame", "row", "column", "read")
SHORT_TEXT, LONG_TEXT = 24, (128, 512)  # tokens


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


@dataclass(frozen=True)
class Recipe:
    """How the generator learns; what each number does is said by the options of `demos.shapes_wan.train`."""

    learning_rate: float = 2e-3
    shift: float = 5.0
    forms: float = 0.0
    auxiliary: float = 0.3
    long_text: float = 0.0
    ema_decay: float = 0.995
    bfloat16: bool = False


class Trainer:
    """The generator and its average, the auxiliary tasks, the optimizers, and how many steps they have made."""

    def __init__(self, z_dim: int, recipe: Recipe, device: str = "cpu"):
        self.recipe, self.device, self.done, self.random = recipe, device, 0, random.Random(0)
        self.model = Generator(z_dim).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.locator = Locator(self.model.transformer).to(device)
        self.reader = Reader(self.model.tokenizer).to(device)
        self.muon, self.adamw = make_optimizers(
            self.model, [self.locator, self.reader], recipe.learning_rate, recipe.bfloat16
        )
        self._recent: list[Tensor] = []

    def start_from(self, folder: Path) -> None:
        """Take the weights of an earlier training; FileNotFoundError without its checkpoint."""
        load_checkpoint(folder, required=True, model=self.model, average=self.average)

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, if there is one, with random numbers of its step."""
        self.done = load_checkpoint(folder, **self._parts())
        self.random = random.Random(self.done)
        torch.manual_seed(self.done)

    def save(self, folder: Path) -> None:
        """Write everything to go on from."""
        save_checkpoint(folder, self.done, **self._parts())

    def compile_blocks(self) -> None:
        """Compile the transformer's blocks, anew for every shape."""
        for block in self.model.transformer.blocks:
            block.compile(dynamic=False)

    def step(self, batch: Batch, count: int, rate_factor: float) -> None:
        """Make one step on `count` frames of each video, at this share of the learning rate."""
        recipe = self.recipe
        for group in (*self.muon.param_groups, *self.adamw.param_groups):
            group["lr"] = recipe.learning_rate * rate_factor
        text_length = self.random.choice(LONG_TEXT) if self.random.random() < recipe.long_text else SHORT_TEXT
        picked = choose_frames(len(batch.frames), count, self.random)
        latents, frames = batch.latents[:, :, picked].to(self.device), batch.frames[picked]
        weights = self._weights(batch, picked).to(self.device)
        autocast = torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=recipe.bfloat16)
        with at_frames(self.model.transformer.rope, batch.length, frames), autocast:
            loss = flow_matching_loss(self.model, latents, batch.captions, weights, recipe.shift, text_length)
            places = self.locator.loss(kept_grid(frames, batch.length, latents))
            read = self.reader.loss(self.model.text_encoder, self.random)
        (loss + recipe.auxiliary * (places.mean() + read)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.muon, self.adamw):
            optimizer.step()
            optimizer.zero_grad()
        keep = min(recipe.ema_decay, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        self.done += 1
        self._recent.append(torch.stack([loss.detach(), *places.detach(), read.detach()]))

    def progress(self) -> str:
        """Return the step and the means of the losses since it was asked last."""
        means = torch.stack(self._recent).mean(0).tolist()
        self._recent.clear()
        return f"step {self.done} " + " ".join(f"{name} {mean:.4f}" for name, mean in zip(LOSSES, means, strict=True))

    def _weights(self, batch: Batch, picked: Int[Tensor, " frames"]) -> Float[Tensor, "b 1 frames h w"]:
        if batch.weights is not None:
            return batch.weights[:, :, picked]
        times = batch.frames[picked] / (batch.length - 1)
        return form_weights(batch.captions, times, *batch.latents.shape[3:], share=self.recipe.forms)

    def _parts(self) -> dict[str, Any]:
        names = ("model", "average", "locator", "reader", "muon", "adamw")
        return {name: getattr(self, name) for name in names}

"""Training of routers: one step, its checkpoint, and what the next command reads."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from accel.errors import InputError
from accel.files import replacing
from accel.models.adapters.adapter import Adapter
from accel.routing.checkpoint import CHECKPOINT, read_checkpoint
from accel.routing.execution import RoutedTransformer
from accel.routing.folder import read_routers, save_routers
from accel.routing.losses import gate_rate_loss, step_rate_loss, target_rate, velocity_loss, width_rate_loss
from accel.routing.recipe import Recipe
from accel.routing.router import WIDTHS, Routers, RoutersConfig

FIGURES = ("loss", "error", "gates", "widths")
MOST_GRADIENT = 1.0
RATE_DRAWS = 8  # at least so many samples and timesteps of which a rate is asked that is no block's own
RATES = 3  # the stream of random numbers that they come from
GAPS = (1 / 30, 1 / 3)  # shares of denoising that lie between a block and what it reuses: from 1 of 30 steps to 4 of 12


class RouterTrainer:
    """Routers on a transformer, their optimizer, and how many steps they have made."""

    def __init__(self, transformer: Any, adapter: Adapter, recipe: Recipe, device: str = "cpu", bfloat16: bool = False):
        self.recipe, self.adapter, self.done = recipe, adapter, 0
        precision, where = "bf16" if bfloat16 else "no", torch.device(device)
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)  # the one that accelerate takes
        try:
            self.accelerator = Accelerator(cpu=where.type == "cpu", mixed_precision=precision)
        except ValueError as error:
            raise InputError(
                f"accelerate cannot train on {device} with mixed precision {precision}: {str(error).splitlines()[0]} "
                "Start a new process if this one has trained otherwise before"
            ) from error
        self.setting: dict[str, Any] = {}  # what else a training that is gone on with has to have in common
        assert adapter.blocks is not None and adapter.channels is not None
        widths = (1.0,) if recipe.width_rate is None else WIDTHS
        config = RoutersConfig(
            type(transformer).__name__, len(adapter.blocks(transformer)), adapter.channels(transformer),
            widths=widths, variant=recipe.variant, rest=recipe.rest,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.routers = Routers(config)
        self.transformer = transformer.requires_grad_(False).train(self.joint)
        self.teacher = None
        if recipe.distillation > 0:  # a frozen one teaches itself: routers touch it in their own passes only
            self.teacher = copy.deepcopy(transformer).eval().to(self.accelerator.device) if self.joint else transformer
        self.tuned = self._tuned()
        groups = [{"params": list(self.routers.parameters()), "share": recipe.learning_rate, "waits": False}]
        if self.joint:
            groups.append({"params": list(self.tuned.values()), "share": recipe.backbone_rate, "waits": True})
        optimizer = torch.optim.AdamW(groups, 0.0, (0.9, 0.98), weight_decay=0.0)
        module = RoutedTransformer(transformer, self.routers, adapter)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._recent: list[Tensor] = []

    @property
    def joint(self) -> bool:
        """Whether the transformer learns as well."""
        return self.recipe.backbone_rate > 0

    def step(
        self,
        latents: Float[Tensor, "b c t h w"],
        text: Float[Tensor, "b tokens channels"],
        rate_factor: float = 1.0,
        weights: Float[Tensor, "b 1 t h w"] | None = None,
    ) -> dict[str, Tensor]:
        """Make one step on normalised latents, at this share of the learning rates, and return its figures.

        InputError, before anything changes, if the loss is not finite.
        """
        device = self.accelerator.device
        noise, timestep, before = self.draw(latents)
        latents, noise, timestep, before, text = (x.to(device) for x in (latents, noise, timestep, before, text))
        losses = self.losses(latents, noise, timestep, before, text, None if weights is None else weights.to(device))
        if not losses["loss"].isfinite():
            raise InputError(f"the loss is {losses['loss'].item()} at step {self.done + 1}; give a lower learning rate")
        self.accelerator.backward(losses["loss"])
        self.accelerator.clip_grad_norm_(self._parameters(), MOST_GRADIENT)
        for group in self.optimizer.param_groups:
            waits = group["waits"] and self.done < self.recipe.alone
            group["lr"] = 0.0 if waits else group["share"] * rate_factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        self._recent.append(torch.stack([losses[name].detach() for name in FIGURES]))
        return losses

    def draw(
        self, latents: Float[Tensor, "b c t h w"]
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return noise and timesteps (0 to 1000) of the next step, and noisier ones, of what blocks reuse."""
        random = self.random()
        uniform = torch.sigmoid(torch.randn(len(latents), generator=random))
        noise = torch.randn(latents.shape, generator=random)
        low, high = (math.log(gap) for gap in GAPS)
        gaps = torch.exp(low + (high - low) * torch.rand(len(latents), generator=random))
        sigma, before = (self._shifted(share) for share in (uniform, (uniform + gaps).clamp(max=1)))
        return noise, 1000 * sigma, 1000 * before

    def _shifted(self, uniform: Tensor) -> Tensor:
        return self.recipe.shift * uniform / (1 + (self.recipe.shift - 1) * uniform)

    def random(self, stream: int = 0) -> torch.Generator:
        """Return random numbers of the next step: those of noise and timesteps, or another stream's."""
        number = hashlib.sha256(f"{self.recipe.seed} {self.done} {stream}".encode()).digest()[:4]
        return torch.Generator().manual_seed(int.from_bytes(number, "little"))  # torch reads no more than 32 bits of it

    def losses(
        self, latents: Tensor, noise: Tensor, timestep: Tensor, before: Tensor, text: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the loss, the error of the velocity in it, and the shares of blocks and of widths that were run.

        `before` are the timesteps of what blocks reuse that rest.
        """
        recipe, toward = self.recipe, noise - latents
        noisy = latents + _level(timestep) * toward
        earlier = None
        if recipe.rest == "reuse":
            with self.accelerator.autocast():
                earlier = self.accelerator.unwrap_model(self.module).added(
                    latents + _level(before) * toward, before, text
                )
        velocity, said = self.module(noisy, timestep, text, earlier)
        error = velocity_loss(velocity, self._wanted(toward, noisy, timestep, text), weights)
        if recipe.rest == "reuse":
            rates = self._step_rate_loss(latents, text, said.probabilities, timestep)
        else:
            rates = gate_rate_loss(said.probabilities, said.gates, self._target(timestep))
        if recipe.width_rate is not None:
            rates = rates + width_rate_loss(said.expected, said.widths, said.gates, recipe.width_rate)
        runs = said.gates.detach()
        widths = (runs * said.widths.detach()).sum() / runs.sum().clamp(min=1)
        return {"loss": error + recipe.weight * rates, "error": error, "gates": runs.mean(), "widths": widths}

    def _target(self, timestep: Tensor) -> Tensor:
        recipe = self.recipe
        return target_rate(timestep, recipe.rate, recipe.rate if recipe.low_rate is None else recipe.low_rate)

    def _step_rate_loss(self, latents: Tensor, text: Tensor, said: Tensor, timestep: Tensor) -> Tensor:
        """Return the loss of the rate over this step's timesteps and others, at which the router alone is asked.

        So that few samples are enough for it to learn that one timestep runs oftener than another.
        """
        random, times = self.random(RATES), -(-RATE_DRAWS // len(latents)) - 1
        if times == 0:
            return step_rate_loss(said, self._target(timestep))
        latents, text = (x.repeat(times, *[1] * (x.ndim - 1)) for x in (latents, text))
        others = 1000 * self._shifted(torch.sigmoid(torch.randn(len(latents), generator=random)))
        noise = torch.randn(latents.shape, generator=random)
        others, noise = others.to(latents.device), noise.to(latents.device)
        noisy = torch.lerp(latents, noise, _level(others))
        with self.accelerator.autocast():
            asked = self.accelerator.unwrap_model(self.module).probabilities(noisy, others, text)
        return step_rate_loss(torch.cat([said, asked], 1), self._target(torch.cat([timestep, others])))

    @torch.no_grad()
    def _wanted(self, toward: Tensor, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Return the velocity to learn: the one toward the noise, or the teacher's, or of both."""
        if self.teacher is None:
            return toward
        with self.accelerator.autocast():
            told = self.teacher(noisy, timestep, text, return_dict=False)[0]
        return torch.lerp(toward, told.float(), self.recipe.distillation)

    def progress(self) -> str:
        """Return the step and the means of the figures since it was asked last."""
        means = torch.stack(self._recent).mean(0).tolist()
        self._recent.clear()
        return f"step {self.done} " + " ".join(f"{name} {mean:.4f}" for name, mean in zip(FIGURES, means, strict=True))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write routers, to use, with a jointly tuned backbone (in `dtype`), and `checkpoint.pt`, to go on from.

        Each file is replaced at once; InputError, and those of before stay, if weights are not finite.
        """
        if not all(parameter.isfinite().all() for parameter in self._parameters()):
            raise InputError(f"weights are not finite at step {self.done}; start again at a lower learning rate")
        if not self.accelerator.is_main_process:
            return
        tuned = {name: weight.detach().to(dtype or weight.dtype) for name, weight in self.tuned.items()}
        save_routers(self.routers, folder, tuned if self.joint else None)
        whole = io.BytesIO()  # torch's own writer does not say that a disk is full
        known = {"step": self.done, "recipe": dataclasses.asdict(self.recipe), "setting": self.setting}
        torch.save(known | self._states(), whole)
        with replacing(folder / CHECKPOINT) as temporary:
            temporary.write_bytes(whole.getbuffer())

    def start_from(self, folder: Path) -> None:
        """Take routers, and weights that were tuned with them, of an earlier training; InputError if they do not fit.

        What the transformer is taught stays what it was before.
        """
        routers, backbone = read_routers(folder)
        foreign = sorted(backbone.keys() - self.tuned.keys())
        if routers.config != self.routers.config or foreign:
            reason = f"it tunes {foreign[0]}, which stays as it is here" if foreign else "they are of another model"
            raise InputError(f"the routers in {str(folder)!r} do not fit: {reason}; give others, or begin anew")
        self.routers.load_state_dict(routers.state_dict())
        self.transformer.load_state_dict(backbone, strict=False)

    def resume(self, folder: Path) -> None:
        """Go on from `checkpoint.pt`; InputError if there is none, or it is of another recipe or model."""
        state = read_checkpoint(folder, self.recipe, self.setting)
        try:
            self.routers.load_state_dict(state["routers"])
            if self.joint:
                self.transformer.load_state_dict(state["transformer"])
        except (KeyError, RuntimeError) as error:
            path = str(folder / CHECKPOINT)
            raise InputError(f"{path!r} is of another model; give that one, or another folder") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["step"]

    def _tuned(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the transformer that learn, which want a gradient from now on."""
        named, frozen = self.transformer.named_parameters(), self.recipe.frozen
        tuned = {name: p for name, p in named if self.joint and not any(word in name for word in frozen)}
        for parameter in tuned.values():
            parameter.requires_grad_(True)
        return tuned

    def _states(self) -> dict[str, Any]:
        parts: dict[str, nn.Module] = {"routers": self.routers}
        if self.joint:
            parts["transformer"] = self.transformer
        return {name: part.state_dict() for name, part in parts.items()} | {"optimizer": self.optimizer.state_dict()}

    def _parameters(self) -> Iterable[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _level(timestep: Tensor) -> Tensor:
    return (timestep / 1000).view(-1, 1, 1, 1, 1)

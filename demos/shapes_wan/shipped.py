"""The weights that ship with accel, as a start of further training and as the autoencoder of what comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from demos.shapes_wan.model import recover
from demos.shapes_wan.trainer import Generator

EMBEDDED = Path("accel/embedded/shapes-wan")


def shipped_autoencoder(device: str = "cpu") -> AutoencoderKLWan:
    """Return the autoencoder in float32; its configuration holds the statistics of its latents."""
    recover(EMBEDDED)
    vae: Any = AutoencoderKLWan.from_pretrained(EMBEDDED / "vae")
    return vae.to(device).eval()


def shipped_transformer(model: Path = EMBEDDED) -> Any:
    """Return the transformer in float32, or that of another pipeline folder."""
    recover(model)
    return WanTransformer3DModel.from_pretrained(model / "transformer", dtype=torch.float32)


def shipped_text_encoder(model: Path = EMBEDDED) -> Any:
    """Return the text encoder in float32, or that of another pipeline folder."""
    recover(model)
    return UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)


def load_shipped(generator: Generator) -> None:
    """Give a generator the shipped weights, which are those of an average, in float16."""
    recover(EMBEDDED)
    transformer = WanTransformer3DModel.from_pretrained(EMBEDDED / "transformer")
    text_encoder = UMT5EncoderModel.from_pretrained(EMBEDDED / "text_encoder")
    generator.transformer.load_state_dict(transformer.state_dict())
    generator.text_encoder.load_state_dict(text_encoder.state_dict())

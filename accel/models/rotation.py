"""Rotary embedding of Wan's attention on a CPU, where diffusers' own takes ten passes over queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex64, Float
from torch import Tensor

# Processors of diffusers that turn neighbouring channels as the last thing before attention, and nothing else by it.
ROTATING = ("WanAttnProcessor", "SkyReelsV2AttnProcessor")
ROTATED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rotation(arguments: dict[str, Any]) -> Complex64[Tensor, "#b s 1 pairs"] | None:
    """Return the turn of each pair of channels as a complex number, or None where the stock processor is to turn.

    Takes the arguments of the processor by name: `rotary_emb` holds cosines and sines (1 s 1 d), of which it reads
    every second one.
    """
    hidden, tables = arguments["hidden_states"], arguments.get("rotary_emb")
    if not isinstance(tables, tuple) or arguments.get("encoder_hidden_states") is not None or torch.is_grad_enabled():
        return None
    cosines, sines = tables
    is_served = hidden.device.type == "cpu" and hidden.dtype in ROTATED_DTYPES
    if not is_served or cosines.dtype != torch.float32 or sines.dtype != torch.float32:
        return None
    return torch.complex(cosines[..., 0::2], sines[..., 1::2])


def rotate(x: Float[Tensor, "b s h d"], turns: Complex64[Tensor, "#b s 1 pairs"]) -> Float[Tensor, "b s h d"]:
    """Turn pairs of neighbouring channels (arXiv 2104.09864, section 3.4) in float32, rounded once, as Wan's processor.

    Equal to it to the last bit where torch multiplies in vectors, as for heads of 64 and 128 channels on x86.
    """
    pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)

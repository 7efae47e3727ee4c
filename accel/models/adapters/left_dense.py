"""Families that are known, and why their attention stays as it is."""

from __future__ import annotations

from typing import Any

from accel.models.adapters.adapter import Adapter

REASONS = {
    "SanaVideoTransformer3DModel": "its attention is linear: there is no softmax over pairs of tokens",
    "SanaTransformer2DModel": "its attention is linear: there is no softmax over pairs of tokens",
    "SanaWMTransformer3DModel": "most of its layers are linear, and the others have no attention processor",
    "SanaWMLTX2RefinerTransformer3DModel": "its forward call does not tell the latent grid",
    "AnyFlowFARTransformer3DModel": "its causal blocks have a mask of their own",
    "WanAnimate2Transformer3DModel": "its video looks at stored keys of a reference through a mask of its own",
    "Kandinsky6SRTransformer3DModel": "it was trained with block-sparse attention, and brings its mask",
    "Cosmos3OmniTransformer": "its video looks at the text in a causal pass of its own",
}


def _no_grid(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    return None


LEFT_DENSE = tuple(Adapter((name,), r"(?!)", _no_grid, reason=reason) for name, reason in REASONS.items())

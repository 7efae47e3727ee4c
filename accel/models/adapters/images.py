"""Image models, which have long sequences at high resolutions: a picture is a video of one frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from accel.attention.call import Geometry
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import argument, denoised, from_latents, stacks
from accel.models.adapters.streams import ALONE, TEXT_FIRST
from accel.models.compiling import outside_graphs

BOTH_STREAMS = r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn"


@outside_graphs
def flux(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid that the positions of a picture span; reference pictures behind it are other rows.

    Waits for the device.
    """
    ids = argument(transformer, args, kwargs, "img_ids")
    if not isinstance(ids, Tensor):
        return None
    places = (ids[0] if ids.ndim == 3 else ids).cpu()
    own = places[(places[:, :1] == places[0, 0]).flatten()]  # references have other values on the first axis
    height, width = (int(own[:, axis].max() - own[:, axis].min()) + 1 for axis in (1, 2))
    return (
        Geometry(1, height, width, after=len(places) - len(own), rest="before") if height * width == len(own) else None
    )


def qwen(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid of the picture that is made, or of its layers; pictures that are edited stand behind it."""
    shapes = argument(transformer, args, kwargs, "img_shapes")
    if not shapes:
        return None
    first = shapes[0] if isinstance(shapes[0], list) else [shapes[0]]
    if any(shape != shapes[0] for shape in shapes):
        return None
    frames = len(first) - 1 if getattr(transformer.config, "use_layer3d_rope", False) else 1
    if len(set(first[:frames])) > 1 or (frames > 1 and first[0][0] > 1):
        return None
    others = sum(t * y * x for t, y, x in first[frames:])
    return Geometry(first[0][0] * frames, *first[0][1:], after=others, rest="before")


def qwen_latents(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return all that is given: its packed channels are those of the output; the configuration counts others."""
    return argument(transformer, args, kwargs, "hidden_states")


def z_image(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Geometry | None:
    """Return the grid of the pictures, where all have the same size; what fills them up is other rows."""
    pictures = argument(transformer, args, kwargs, "x")
    patch, patch_t = (argument(transformer, args, kwargs, name) for name in ("patch_size", "f_patch_size"))
    # With pictures to look at, each item is a list, and the one that is made stands between others.
    plain = isinstance(pictures, list) and all(isinstance(picture, Tensor) for picture in pictures)
    if not plain or len({picture.shape for picture in pictures}) != 1:
        return None
    patch, patch_t = patch or transformer.config.all_patch_size[0], patch_t or transformer.config.all_f_patch_size[0]
    _, t, y, x = pictures[0].shape
    return Geometry(t // patch_t, y // patch, x // patch, rest="after")


FLUX = Adapter(
    ("FluxTransformer2DModel",),
    BOTH_STREAMS,
    flux,
    stays="rows of text and of reference pictures",
    blocks=stacks("transformer_blocks", "single_transformer_blocks"),
    streams=TEXT_FIRST,
    latents=denoised(2),
)
# The blocks of one stream are most of it; text and picture become one sequence only there.
FLUX_2 = replace(
    FLUX,
    classes=("Flux2Transformer2DModel",),
    # They dispatch without the argument that leads to us.
    caught=("Flux2KVAttnProcessor", "Flux2KVParallelSelfAttnProcessor"),
    blocks=stacks("single_transformer_blocks"),
    streams=ALONE,
)
QWEN_IMAGE = Adapter(
    ("QwenImageTransformer2DModel",),
    r"transformer_blocks\.\d+\.attn",
    qwen,
    one_mask=True,
    stays="rows of text and of pictures that are edited",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_FIRST,
    latents=qwen_latents,
)
SD3 = Adapter(
    ("SD3Transformer2DModel",),
    r"transformer_blocks\.\d+\.attn2?",
    from_latents("bchw", rest="after"),
    dispatched=False,
    stays="rows of text",
    blocks=stacks("transformer_blocks"),
    streams=TEXT_FIRST,
    latents=denoised(),
)
Z_IMAGE = Adapter(
    ("ZImageTransformer2DModel",),
    r"layers\.\d+\.attention",
    z_image,
    one_mask=True,
    timestep="t",
    stays="rows of text",
)

"""What a video is made from beside its prompt: a first picture, and what is not wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from accel.errors import InputError
from accel.workbench.modular import call_defaults, class_of


def conditions(
    pipeline: Any, image: Path | None, negative_prompt: str | None, width: int, height: int
) -> dict[str, Any]:
    """Return arguments of the pipeline's call; the picture is cropped to the video's shape, in pixels.

    InputError where the pipeline needs a picture and has none, or takes none, or where it is no picture.
    """
    parameters, name = call_defaults(pipeline), class_of(pipeline)
    if image is not None and "image" not in parameters:
        raise InputError(f"{name} takes no image; leave --image out, or give an image-to-video model")
    if image is None and "image" in parameters:
        raise InputError(f"{name} needs an image; give --image FILE, or a text-to-video model")
    if negative_prompt is not None and "negative_prompt" not in parameters:
        raise InputError(f"{name} takes no negative prompt; leave --negative-prompt out")
    picture = {} if image is None else {"image": _picture(image, width, height)}
    return picture | ({} if negative_prompt is None else {"negative_prompt": negative_prompt})


def check_made_of_text(pipeline: Any, command: str) -> None:
    """Raise InputError for a pipeline that needs a picture, which a command does not take."""
    if "image" in call_defaults(pipeline):
        raise InputError(
            f"{class_of(pipeline)} needs an image, which {command} does not take; give a text-to-video model"
        )


def _picture(file: Path, width: int, height: int) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (width, height))
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"image {str(file)!r} cannot be read as a picture: {error}") from error

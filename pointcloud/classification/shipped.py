"""The classifiers and segmenters that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pointcloud.classification.model import CloudModel

EMBEDDED = Path(__file__).parents[1] / "embedded"
DEFAULTS = {"shapes": "shapes-tiny", "segments": "segments-tiny"}


def load_model(model: str, task: Literal["shapes", "segments"]) -> CloudModel:
    """Return a model by its name or the path of its file.

    ValueError if there is no such model, or it is for the other task.
    """
    shipped = {file.stem: file for file in sorted(EMBEDDED.glob(f"{task}-*.safetensors"))}
    file = shipped.get(model, Path(model))
    if not file.is_file():
        raise ValueError(f"unknown model {model!r}; shipped: {', '.join(shipped) or 'none'}; or give a file's path")
    loaded = CloudModel.load(file)
    if loaded.config.task != task:
        raise ValueError(f"{model} is a model of {loaded.config.task}; give one of {task}, as {DEFAULTS[task]}")
    return loaded

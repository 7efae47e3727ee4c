"""A pipeline's index, looked at before anything large is read or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

from accel.errors import InputError
from accel.models.adapters import generated_classes, supported_classes
from accel.workbench.modular import WORKFLOWS, modular_class


def check_index(name: str, source: str) -> str | None:
    """Return a modular pipeline's workflow, None for others; InputError where the command line makes no video of it."""
    modular = modular_class(source)
    if modular in WORKFLOWS:
        return WORKFLOWS[modular]
    try:
        index: Any = DiffusionPipeline.load_config(source)
    except Exception as error:
        if modular is not None:
            raise InputError(
                f"{name!r} is a modular pipeline of class {modular}; accepted of those: {', '.join(WORKFLOWS)}"
            ) from error
        if Path(source).is_dir():
            raise InputError(f"{name!r} has an unreadable model_index.json: {first_line(error)}") from error
        raise InputError(
            f"{name!r} is no folder here and could not be downloaded from the Hugging Face Hub; "
            "check the spelling and the network, or give a local folder"
        ) from error
    entries = [index.get(part) or (None, None) for part in ("transformer", "transformer_2")]
    classes = [entry[1] for entry in entries if entry[1] is not None]
    accepted = ", ".join(generated_classes())
    if not classes:
        raise InputError(f"{name!r} ({index.get('_class_name')}) has no video transformer; accepted: {accepted}")
    for other in set(classes) - set(generated_classes()):
        known = other in supported_classes()
        advice = "use accel.enable on its pipeline in Python" if known else "it is not supported"
        raise InputError(
            f"{name!r} has a transformer of class {other}; the command line makes videos with {accepted}: {advice}"
        )
    return None


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, its type if that is nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

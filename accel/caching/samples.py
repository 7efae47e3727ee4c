"""Calls of a transformer sample by sample: the arguments of one, and its output."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def sample_of(value: Any, row: int, batch: int) -> Any:
    """Return one sample of an argument that has one for each of the batch, also within lists and dictionaries."""
    if isinstance(value, Tensor):
        return value[row : row + 1] if value.ndim > 0 and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {name: sample_of(each, row, batch) for name, each in value.items()}
    if isinstance(value, list) and len(value) == batch and all(map(_is_sizes, value)):
        return value[row : row + 1]
    return type(value)(sample_of(each, row, batch) for each in value) if type(value) in (list, tuple) else value


def _is_sizes(value: Any) -> bool:
    """Whether these are the sizes of one sample's pictures; bare numbers, as of layers, are for all samples."""
    return isinstance(value, list | tuple) and not any(isinstance(each, Tensor) for each in value)


def output_like(kind: type, sample: Tensor) -> Any:
    """Return an output of the transformer, of the kind that the pipeline asked for."""
    return (sample,) if kind is tuple else kind(sample=sample)

"""Tests of the C++ kernels are skipped where they, or the instructions of this processor, are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from sparse_kernels import _extension


@contextlib.contextmanager
def available(instructions: str = "") -> Iterator[None]:
    """Skip the test when its body finds that there is no compiler or that the processor lacks the instructions."""
    if reason := _extension.load():
        pytest.skip(reason)
    try:
        yield
    except ValueError as error:
        if f"instruction set {instructions} is not available" in str(error) or "unknown instruction set" in str(error):
            pytest.skip(f"{instructions} is not available here")
        raise

"""What every test of the kernels may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hand out memory full of NaN or of the largest integer, in C++ too: what a kernel leaves unwritten is seen."""
    if request.node.get_closest_marker("gpu"):  # where other algorithms would be chosen, which wait for the device
        yield
        return
    torch.use_deterministic_algorithms(True)  # torch.utils.deterministic.fill_uninitialized_memory is part of it
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what does not fit to the functions' own checks, which is what these tests are about."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

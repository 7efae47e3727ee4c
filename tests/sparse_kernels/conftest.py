"""What every test of the kernels may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

from tests.sparse_kernels.interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """One process with Triton's interpreter a worker; workers share what it says of a file."""
    folder = tmp_path_factory.getbasetemp()
    process = Interpreter(folder, folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    yield process
    process.close()


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

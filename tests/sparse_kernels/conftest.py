"""What every test of the kernels may ask for."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what does not fit to the functions' own checks, which is what these tests are about."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

"""What tests of all parts of the package share."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave wrong shapes and types to the package's own errors, as for users, who have no other checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

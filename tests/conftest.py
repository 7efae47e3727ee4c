"""Signatures are checked in the whole suite, and every test draws the same random numbers in every order."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.checked_signatures import install

install("accel", "pointcloud", "sparse_kernels")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start each test from the same random state, whichever test ran before it on its worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what libraries draw from
    torch.manual_seed(0)

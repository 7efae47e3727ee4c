"""Signatures are checked in the whole suite, and every test draws the same random numbers in every order."""

from __future__ import annotations

import atexit
import gc
import random

import numpy as np
import pytest
import torch

from tests.checked_signatures import install

install("accel", "pointcloud", "sparse_kernels")
gc.disable()  # until all tests are imported: half a million objects that stay would be looked at again and again


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Look for garbage among what the tests make, and not among all that was imported."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # nanobind says of what is never freed that it leaks


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start each test from the same random state, whichever test ran before it on its worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what libraries draw from
    torch.manual_seed(0)

"""Signatures are checked in the whole suite."""

from __future__ import annotations

from tests.checked_signatures import install

install("accel", "pointcloud", "sparse_kernels")

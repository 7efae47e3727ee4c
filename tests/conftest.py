"""Signatures are checked in the whole suite: types, shapes, and that equal names of dimensions are equal."""

from __future__ import annotations

from jaxtyping import install_import_hook

# An int serves where a float is asked for, as everywhere in Python.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["accel", "pointcloud", "sparse_kernels"], CHECKER)

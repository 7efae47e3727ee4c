"""Checks that the methods' hyper-parameters share."""

from __future__ import annotations

from typing import Any


def check_shares(method: Any, *names: str) -> None:
    """Raise ValueError unless every named field lies between 0 and 1."""
    for name in names:
        value = getattr(method, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def check_common(method: Any) -> None:
    """Raise ValueError unless density (None: the method's own rule), dense_steps, dense_layers and block are usable."""
    check_shares(method, "dense_steps")
    if method.density is not None and not 0 < method.density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {method.density}")
    if method.dense_layers < 0:
        raise ValueError(f"dense_layers must be 0 or more, got {method.dense_layers}")
    if method.block < 16 or method.block % 16:
        raise ValueError(f"block must be a multiple of 16, got {method.block}")


def check_clusters(method: Any) -> None:
    """Raise ValueError unless the fields that the clustering methods share are usable."""
    check_shares(method, "dense_steps", "top_p", "least_share", "first_share")
    if method.density is not None and not 0 < method.density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {method.density}; None lets top_p decide")
    for name in ("dense_layers", "first_iterations", "iterations"):
        if getattr(method, name) < 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(method, name)}")
    for name in ("query_clusters", "key_clusters"):
        value = getattr(method, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, or None to follow the number of tokens, got {value}")

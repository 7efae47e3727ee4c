"""Whether a model and data speak of the same classes."""

from __future__ import annotations

from collections.abc import Sequence


def check_classes(known: Sequence[str], shown: Sequence[str], name: str) -> None:
    """Raise ValueError if a model's classes, or their order, are not those of data to learn or be measured on."""
    if tuple(known) != tuple(shown):
        raise ValueError(f"{name} has the classes {', '.join(known)}; the data have {', '.join(shown)}, in this order")

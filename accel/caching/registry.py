"""Cache policies by their names, with options as keywords or as text."""

from __future__ import annotations

from typing import Any

from accel.caching.dual_block import DualBlock
from accel.caching.easy import EasyCache
from accel.caching.policy import Policy
from accel.caching.prune import Prune
from accel.caching.table import Table
from accel.naming import check_name, parse
from accel.routing.policy import Routed

POLICIES: dict[str, type[Policy]] = {
    "easy": EasyCache,
    "dual-block": DualBlock,
    "prune": Prune,
    "table": Table,
    "routers": Routed,
}


def by_name(name: str, **options: Any) -> Policy:
    """Return the policy called `name`; ValueError names the known ones, or the options it takes."""
    check_name("cache", POLICIES, name, options)
    return POLICIES[name](**options)


def from_text(text: str) -> Policy:
    """Return the policy of a text like `easy:threshold=0.1`; ValueError on what is not known or has no value."""
    name, options = parse(text)
    try:
        return by_name(name, **options)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"{text!r} cannot be used: {error}") from error


def name_of(policy: Policy | None) -> str:
    """Return the name of a policy, `none` of None."""
    if policy is None:
        return "none"
    return next((name for name, known in POLICIES.items() if type(policy) is known), type(policy).__name__)

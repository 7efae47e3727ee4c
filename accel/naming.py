"""Methods and cache policies by their names: which there are, which options they take, and options given as text."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def fields_of(kind: Any) -> list[str]:
    """Return the options of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]


def check_name(what: str, known: Mapping[str, Any], name: str, options: Iterable[str]) -> None:
    """Raise ValueError, naming what is accepted, unless `known` has that name and its dataclass those options."""
    if name not in known:
        near = get_close_matches(name.replace("_", "-").lower(), known, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}; {meant}accepted: {', '.join(known)}")
    accepted = fields_of(known[name])
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"{what} {name} has no option {', '.join(unknown)}; accepted: {', '.join(accepted)}")


def check_least(chosen: Any, least: float, *names: str) -> None:
    """Raise ValueError unless every named option of a method or policy is None or at least `least`."""
    for name in names:
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of a text like `re-ttention:base=adaspa:growth=0.02`; ValueError where a value lacks."""
    name, *parts = text.split(":")
    options = {}
    for part in parts:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not (option and equals and value):
            raise ValueError(f"{part!r} in {text!r} is no option; write NAME:OPTION=VALUE:OPTION=VALUE")
        options[option] = _value(value)
    return name.strip(), options


def _value(text: str) -> Any:
    """Return a number, True, False or None as such, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

"""Methods and cache policies by their names: which there are, which options they take, and options given as text."""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}


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


def check_kinds(chosen: Any) -> None:
    """Raise ValueError unless every option of a method or policy is what its dataclass declares, and a number finite.

    Whole numbers are numbers, True and False are none.
    """
    hints = typing.get_type_hints(type(chosen))
    for name in fields_of(chosen):
        if not _is_of(getattr(chosen, name), hints[name]):
            raise ValueError(f"{name} must be {_words(hints[name])}, got {getattr(chosen, name)!r}")


def _is_of(value: Any, kind: Any) -> bool:
    parts = typing.get_args(kind)
    if kind is Any:
        return True
    if typing.get_origin(kind) is typing.Literal:
        return value in parts
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_is_of(value, part) for part in parts)
    if typing.get_origin(kind) is tuple:
        parts = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_of, value, parts))
    if kind in (int, float) and isinstance(value, Real):
        fits = isinstance(value, Integral) if kind is int else math.isfinite(value)
        return fits and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(kind) or kind)


def _words(kind: Any) -> str:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        count = "" if parts[-1] is ... else f" {len(parts)}"
        return f"a tuple of{count} {'whole numbers' if parts[0] is int else 'numbers'}"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, parts))
    return " or ".join(map(_words, parts)) if parts else WORDS.get(kind, f"a {kind.__name__}")


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
    if len(text) > 1 and not text.strip("0"):
        return text  # a row of zeros, as a mask of steps is one, and no number
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

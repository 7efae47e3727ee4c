"""Methods by their names, with options as keywords or as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from accel.methods.adaspa import AdaSpa
from accel.methods.full import Full
from accel.methods.method import Method, Scheduled
from accel.methods.preset import Preset
from accel.methods.re_ttention import ReTtention
from accel.methods.sparse_vdit import SparseVDiT
from accel.methods.svg2 import SVG2
from accel.methods.svg_ear import SVGEAR
from accel.methods.xattention import XAttention
from accel.naming import check_name, parse

METHODS: dict[str, type[Scheduled]] = {
    "sparse-vdit": SparseVDiT,
    "adaspa": AdaSpa,
    "re-ttention": ReTtention,
    "xattention": XAttention,
    "svg2": SVG2,
    "svg-ear": SVGEAR,
    "full": Full,
}
SPARSE_METHODS = tuple(name for name in METHODS if name != "full")
DEFAULT_METHOD = "svg-ear"
PRESET = "preset"


def by_name(name: str, **options: Any) -> Scheduled:
    """Return the method called `name`; ValueError names the known ones, or the options it takes."""
    check_name("method", METHODS, name, options)
    if isinstance(options.get("base"), str):
        options = options | {"base": _base(name, options), "density": None}
    return METHODS[name](**options)


def _base(name: str, options: dict[str, Any]) -> Method:
    """Return the method that `name` builds on, with the density and the warm-up of both."""
    shared = {field.name for field in dataclasses.fields(Scheduled)}
    defaults = {field.name: field.default for field in dataclasses.fields(METHODS[name]) if field.name in shared}
    handed_down = {key: options.get(key, default) for key, default in defaults.items()}
    return by_name(options["base"], **{key: value for key, value in handed_down.items() if value is not None})


def from_text(text: str, **options: Any) -> Method:
    """Return the method of a text like `re-ttention:base=adaspa:growth=0.02`; `options` give way to what it says.

    `preset` with options is the default method with these: who says them is obeyed.

    ValueError on a name or option that is not known and on an option without a value.
    """
    name, given = parse(text)
    options |= given
    if name == PRESET and not options:
        return Preset()
    try:
        return by_name(DEFAULT_METHOD if name == PRESET else name, **options)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"{text!r} cannot be used: {error}") from error


def name_of(method: Method | None) -> str:
    """Return the name of a method, `dense` of None."""
    if method is None:
        return "dense"
    if isinstance(method, Preset):
        return PRESET
    return next((name for name, known in METHODS.items() if type(method) is known), type(method).__name__)

"""Sparse-attention methods, one file a paper."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Protocol

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.plan import Plan
from accel.methods.adaspa import AdaSpa
from accel.methods.full import Full
from accel.methods.re_ttention import ReTtention
from accel.methods.sparse_vdit import SparseVDiT
from accel.methods.svg2 import SVG2
from accel.methods.svg_ear import SVGEAR
from accel.methods.xattention import XAttention

METHODS = {
    "sparse-vdit": SparseVDiT,
    "adaspa": AdaSpa,
    "re-ttention": ReTtention,
    "xattention": XAttention,
    "svg2": SVG2,
    "svg-ear": SVGEAR,
    "full": Full,
}
SPARSE_METHODS = tuple(name for name in METHODS if name != "full")


class Method(Protocol):
    """A frozen dataclass of published hyper-parameters that plans each attention call."""

    def plan(self, call: AttentionCall, memory: LayerMemory) -> Plan:
        """Decide how the call is computed; `memory` is this layer's and branch's, fresh for each generation."""
        ...


def by_name(name: str, **options: Any) -> Method:
    """Return the method called `name`; ValueError names the known ones, or the options it takes."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; accepted: {', '.join(METHODS)}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ValueError(f"method {name} has no option {', '.join(unknown)}; accepted: {', '.join(fields)}")
    return METHODS[name](**options)


def from_text(text: str, **options: Any) -> Method:
    """Return the method of a text like `re-ttention:base=adaspa:growth=0.02`; `options` give way to what it says.

    ValueError on a name or option that is not known and on an option without a value.
    """
    name, *parts = text.split(":")
    for part in parts:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not (option and equals and value):
            raise ValueError(f"{part!r} in {text!r} is no option; write NAME:OPTION=VALUE:OPTION=VALUE")
        options[option] = _value(value)
    try:
        return by_name(name.strip(), **options)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"{text!r} cannot be used: {error}") from error


def _value(text: str) -> Any:
    """Return a number, True, False or None as such, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

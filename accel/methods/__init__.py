"""Sparse-attention methods, one file a paper."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from accel.attention.call import AttentionCall, LayerMemory
from accel.attention.plan import Plan
from accel.methods.adaspa import AdaSpa
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
}


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

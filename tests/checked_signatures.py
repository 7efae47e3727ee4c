"""Every function of our packages checks its signature: types, shapes, and that equal names of dimensions are equal.

What jaxtyping's own import hook does, but with one check a call instead of two, none of it before the first call, and
shapes only where there are some: half of the suite's time went there.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import CodeType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# An int serves where a float is asked for, as everywhere in Python.
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
SHAPES = re.compile(r"\[.*[\"']")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is checked from its first call on; `jaxtyping.config.jaxtyping_disable` lets all pass."""
    if not function.__annotations__:
        return function
    has_shapes = any(SHAPES.search(str(text)) for text in function.__annotations__.values())
    check: Callable[..., Any] | None = None

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        nonlocal check
        if check is None:
            function.__annotations__ = {name: _read(text, function) for name, text in function.__annotations__.items()}
            check = check_types(function)
        if not has_shapes:
            return check(*args, **kwargs)
        with jaxtyping.jaxtyped("context"):
            return check(*args, **kwargs)

    return called


def checked_class(cls: type) -> type:
    """Return a class whose `__init__` is checked where a dataclass made it."""
    if "__dataclass_fields__" in vars(cls) and "__init__" in vars(cls) and not hasattr(cls.__init__, "__wrapped__"):
        cls.__init__ = checked(cls.__init__)
    return cls


def _read(text: Any, function: Callable[..., Any]) -> Any:
    """Return what an annotation means; what is imported for the type checker alone, or local, is anything."""
    try:
        return eval(text, function.__globals__) if isinstance(text, str) else text
    except NameError:
        return Any


class _Decorate(ast.NodeTransformer):
    """Puts `checked` below all other decorators of functions, and `checked_class` above those of classes."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if not any("triton" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.decorator_list.append(_named("checked", node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, _named("checked_class", node))
        return node


def _named(name: str, at: ast.AST) -> ast.expr:
    """Return the expression of one of our decorators, at the place of what it decorates."""
    expression = ast.parse(f"__import__('sys').modules[{__name__!r}].{name}", mode="eval").body
    return ast.fix_missing_locations(ast.copy_location(expression, at))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code from its source: what Python keeps of it has no decorators."""
        path = self.get_filename(fullname)
        tree = _Decorate().visit(ast.parse(decode_source(self.get_data(path)), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class CheckedSignatures(MetaPathFinder):
    """Loads the modules of some packages with their signatures checked."""

    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where such a module is, with our loader."""
        spec = PathFinder.find_spec(fullname, path) if fullname.partition(".")[0] in self.packages else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(*packages: str) -> None:
    """Check the signatures of these packages from their next import on."""
    sys.meta_path.insert(0, CheckedSignatures(packages))

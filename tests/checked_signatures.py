"""Every function of our packages checks its signature: types, shapes, and that equal names of dimensions are equal.

What jaxtyping's own import hook does, but with one check a call instead of two, none of it before the first call,
shapes only where there are some, and once for tensors of the same sizes: half of the suite's time went there.
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
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo

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
        push_shape_memo({})
        try:
            return check(*args, **kwargs)
        finally:
            pop_shape_memo()

    return called


def checked_class(cls: type) -> type:
    """Return a class whose `__init__` is checked where a dataclass made it."""
    if "__dataclass_fields__" in vars(cls) and "__init__" in vars(cls) and not hasattr(cls.__init__, "__wrapped__"):
        cls.__init__ = checked(cls.__init__)
    return cls


def _read(text: Any, function: Callable[..., Any]) -> Any:
    """Return what an annotation means; what is imported for the type checker alone, or local, is anything."""
    try:
        names = function.__globals__
        return eval(text, names, _remembering_kinds(names)) if isinstance(text, str) else text
    except NameError:
        return Any


class _Remembering(type):
    """Annotations of jaxtyping that remember which tensors have fitted, and which sizes their dimensions then had."""

    annotation: Any
    fitted: dict[Any, Any]

    def __instancecheck__(cls, x: Any) -> bool:
        if type(x) is not torch.Tensor:
            return isinstance(x, cls.annotation)
        singles, variadics, *_ = get_shape_memo()
        key = x.dtype, x.shape, tuple(singles.items()), tuple(variadics.items())
        try:
            sizes = cls.fitted.get(key)
        except TypeError:  # a size that is a symbol, known from another argument
            return isinstance(x, cls.annotation)
        if sizes is None:
            if not isinstance(x, cls.annotation):
                return False
            sizes = cls.fitted[key] = dict(singles), dict(variadics)
        singles.update(sizes[0])
        variadics.update(sizes[1])
        return True

    def __instancecheck_str__(cls, x: Any) -> str:
        """Return what does not fit, for beartype's messages."""
        return cls.annotation.__instancecheck_str__(x)


@functools.cache
def _remembering(annotation: Any) -> Any:
    return _Remembering(annotation.__name__, (), {"annotation": annotation, "fitted": {}})


class _Kind:
    """A kind of numbers, as `Float`, whose annotations remember."""

    def __init__(self, kind: Any):
        self.kind = kind

    def __getitem__(self, array_and_shape: tuple[Any, str]) -> Any:
        return _remembering(self.kind[array_and_shape])


def _remembering_kinds(names: dict[str, Any]) -> dict[str, _Kind]:
    """Return those kinds of numbers that a module knows."""
    kinds = {name: kind for name, kind in names.items() if isinstance(kind, type)}
    return {name: _Kind(kind) for name, kind in kinds.items() if issubclass(kind, jaxtyping.AbstractDtype)}


class _Decorate(ast.NodeVisitor):
    """Puts `checked` below all other decorators of functions, and `checked_class` above those of classes."""

    def generic_visit(self, node: ast.AST) -> None:
        """Look at statements alone: no expression holds a function with annotations."""
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):
                self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.generic_visit(node)
        if not any("triton" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.decorator_list.append(_named("checked", node))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.generic_visit(node)
        node.decorator_list.insert(0, _named("checked_class", node))


def _named(name: str, at: ast.AST) -> ast.expr:
    """Return the expression of one of our decorators, at the place of what it decorates."""
    expression = ast.parse(f"__import__('sys').modules[{__name__!r}].{name}", mode="eval").body
    return ast.fix_missing_locations(ast.copy_location(expression, at))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code from its source: what Python keeps of it has no decorators."""
        path = self.get_filename(fullname)
        tree = ast.parse(decode_source(self.get_data(path)), path)
        _Decorate().visit(tree)
        return compile(tree, path, "exec", dont_inherit=True)


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

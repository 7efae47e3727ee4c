"""The house: which way arrows point, no circles, and what an import may bring along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"accel": ROOT, "pointcloud": ROOT, "sparse_kernels": ROOT / "kernels", "demos": ROOT, "benchmarks": ROOT}
# Who may import whom, by package or room; a room may always import itself. The longest name that fits counts.
ARROWS = {
    "sparse_kernels": (),
    "pointcloud": ("sparse_kernels",),
    "pointcloud.metering": ("pointcloud.nn", "sparse_kernels"),
    "benchmarks": ("accel", "pointcloud", "sparse_kernels", "demos"),
    "demos": ("accel", "pointcloud", "sparse_kernels"),
    "accel.errors": (),
    "accel.files": ("accel.errors",),
    "accel.naming": (),
    "accel.attention": ("accel.errors", "accel.files", "sparse_kernels"),
    "accel.methods": ("accel.attention", "accel.naming", "sparse_kernels"),
    "accel.models": ("accel.attention", "accel.methods.method", "sparse_kernels"),
    "accel.caching": ("accel.attention.call", "accel.errors", "accel.files", "accel.models", "accel.naming"),
    "accel.routing": (
        "accel.caching", "accel.errors", "accel.files", "accel.models", "accel.naming",
    ),
    "accel.caching.registry": ("accel.caching", "accel.naming", "accel.routing"),
    "accel.handle": ("accel.attention", "accel.caching", "accel.models"),
    "accel.attach": ("accel.attention", "accel.caching", "accel.handle", "accel.methods", "accel.models"),
    "accel.search": ("accel.attach", "accel.attention", "accel.methods"),
    "accel.workbench": (
        "accel.attach", "accel.attention", "accel.caching", "accel.errors", "accel.files", "accel.handle",
        "accel.methods", "accel.models", "accel.naming", "accel.routing", "accel.search", "sparse_kernels",
    ),
    "accel.commands": (
        "accel.errors", "accel.files", "accel.methods", "accel.models.adapters", "accel.workbench", "sparse_kernels",
    ),
    "accel.cli": ("accel.commands",),
    "accel": ("accel.attach", "accel.handle", "accel.routing", "accel.search"),
}  # fmt: skip
# Heavy packages, and the only places that may import them.
HEAVY = {
    "diffusers": (
        "accel.caching.blocks",
        "accel.caching.hook",
        "accel.models",
        "accel.workbench",
        "demos",
        "benchmarks",
    ),
    "PIL": ("accel.workbench", "demos"),
    "imageio": ("accel.workbench", "pointcloud.events", "demos"),
    "imageio_ffmpeg": ("accel.workbench", "pointcloud.events", "demos"),
    "matplotlib": ("accel.workbench", "pointcloud", "demos", "benchmarks"),
    "gradio": ("demos",),
    "spconv": ("pointcloud", "benchmarks"),
    "open3d": ("pointcloud",),
    "triton": ("sparse_kernels", "benchmarks"),
}


def modules() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package, home in HOMES.items():
        for file in (home / package).rglob("*.py"):
            parts = file.relative_to(home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it, but those for type checkers alone."""
    tree = ast.parse(file.read_text())
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, places: Iterable[str]) -> bool:
    """Whether a module lies in one of the packages or modules."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def forbidden(name: str, imported: Iterable[str]) -> list[str]:
    """Return what a module imports against the arrows."""
    room = max((room for room in ARROWS if inside(name, [room])), key=len)
    ours = (each for each in imported if inside(each, HOMES))
    wrong = [each for each in ours if not inside(each, (room, *ARROWS[room])) and each not in HOMES]
    heavy = [
        each for each in imported for package in HEAVY if inside(each, [package]) and not inside(name, HEAVY[package])
    ]
    return wrong + heavy


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a ring, or nothing."""
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> list[str]:
        state[name] = 1
        for other in sorted(graph.get(name, ())):
            if state.get(other) == 1:
                return [*path[path.index(other) :], other] if other in path else [name, other]
            if other not in state and (found := visit(other, [*path, other])):
                return found
        state[name] = 2
        return []

    return next((found for name in graph if name not in state and (found := visit(name, [name]))), [])


def graph_of(files: dict[str, Path]) -> dict[str, set[str]]:
    """Return module -> modules of ours that it imports, a name by the module that holds it."""
    return {
        name: {each if each in files else each.rpartition(".")[0] for each in imports(file)} & set(files) - {name}
        for name, file in files.items()
    }


@pytest.mark.parametrize("name", modules())
def test_arrows_point_one_way(name: str) -> None:
    assert forbidden(name, imports(modules()[name])) == []


def test_no_module_waits_for_itself() -> None:
    assert circle(graph_of(modules())) == []


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("accel.attention.plan", "accel.models.session"),
        ("accel.methods.svg2", "accel.search"),
        ("accel.models.session", "accel.methods.registry"),
        ("accel.attach", "matplotlib.figure"),
        ("accel.models.session", "PIL"),
        ("pointcloud.voxels", "accel.errors"),
        ("sparse_kernels.block_map", "pointcloud.points"),
        ("accel.attach", "accel.workbench.loading"),
        ("pointcloud.points", "gradio"),
    ],
)
def test_a_planted_import_is_found(name: str, planted: str) -> None:
    assert forbidden(name, {*imports(modules()[name]), planted}) == [planted]


def test_a_planted_circle_is_found() -> None:
    graph = graph_of(modules())
    graph["accel.attention.call"].add("accel.attention.execute")
    assert {"accel.attention.call", "accel.attention.execute"} <= set(circle(graph))


@pytest.mark.parametrize("package", ["accel", "sparse_kernels", "pointcloud"])
def test_importing_a_package_is_light(package: str) -> None:
    heavy = sorted({*HEAVY, "typer", "rich", "transformers"})
    assert loaded(f"import {package}", heavy) == []


def test_the_plug_in_brings_no_pictures() -> None:
    # Diffusers itself imports PIL.
    assert loaded("import accel; accel.enable", ["matplotlib", "imageio", "gradio", "typer"]) == []


def loaded(code: str, names: list[str]) -> list[str]:
    """Return which packages are there after some code, in a process of its own."""
    script = f"import sys\n{code}\nprint(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()

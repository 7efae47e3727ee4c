"""What README, docs and CONTRIBUTING show is run, and what they name is there."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from diffusers import WanPipeline

from accel.methods.method import Scheduled
from accel.models.adapters.adapter import Adapter
from tests.docs.pages import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    inline_commands,
    links,
    named_files,
    python_sections,
    tree,
)
from tests.tiny_wan import tiny_pipeline

SMALL = dict(num_frames=9, height=64, width=64, num_inference_steps=4, guidance_scale=3.0, max_sequence_length=24)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class OfflineWan(WanPipeline):
    """Stands for a model that would be downloaded: a real pipeline with tiny random weights, and small videos."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        return super().__call__(*args, **SMALL | more)

    def to(self, *args: Any, **kwargs: Any) -> OfflineWan:
        """Stay on the CPU, whatever device the page names."""
        return self


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty folder, with `WanPipeline.from_pretrained` giving the tiny pipeline."""

    def from_pretrained(name: str, **options: Any) -> WanPipeline:
        pipe = OfflineWan(**tiny_pipeline().components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WanPipeline, "from_pretrained", from_pretrained)


def _sections() -> list[Any]:
    return [
        pytest.param(section, id=str(section[0]), marks=[pytest.mark.slow] if any(b.slow for b in section) else [])
        for section in python_sections()
    ]


@pytest.mark.parametrize("section", _sections())
def test_python_blocks_run(section: list[Block], offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "block"}
    for package, module in (("spconv", "spconv.pytorch"), ("pointcloud.scenes", "open3d")):
        if any(package in block.text for block in section):
            pytest.importorskip(module, exc_type=ImportError)  # which warn when they are imported
    for block in section:
        exec(compile(block.text, str(block), "exec", dont_inherit=True), namespace)
        _register(namespace, monkeypatch)


def _register(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the recipes say in words: one line for a new method in the registry, one for a new family."""
    from accel.methods import registry
    from accel.models import adapters

    for value in list(namespace.values()):
        if isinstance(value, type) and issubclass(value, Scheduled) and value.__module__ == "block":
            monkeypatch.setitem(registry.METHODS, value.__name__.lower(), value)
        if isinstance(value, Adapter) and value not in adapters.ADAPTERS:
            monkeypatch.setattr(adapters, "ADAPTERS", (*adapters.ADAPTERS, value))


@every_page
def test_command_lines_parse(page: Path) -> None:
    for words in commands(page):
        command, arguments = _command(words)
        if command is not None:
            command.make_context(words[0], arguments)
        _check_make_and_pip(words)
    for words in inline_commands(page):
        command, arguments = _command(words)
        if command is not None:
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in arguments if word.startswith("--")} <= known, words
        _check_make_and_pip(words)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """Return what parses a command line, and what it is to parse; None if it is none of ours."""
    command: Any = None
    if words[0] in ("accel", "pointcloud"):
        command, words = typer.main.get_command(importlib.import_module(f"{words[0]}.cli").app), words[1:]
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("benchmarks", "demos"):
        module = importlib.import_module(words[2] if "." in words[2] else f"{words[2]}.__main__")
        app = typer.Typer(add_completion=False)
        app.command()(module.main)
        command, words = typer.main.get_command(app), words[3:]
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{words} is no command; there are {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _check_make_and_pip(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words
    for extras in re.findall(r"\[(.*?)\]", " ".join(words)) if words[0] == "pip" else ():
        section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].split("\n[")[0]
        assert set(extras.split(",")) <= set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE)), words


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_named_files_are_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # names what is gone as well
        return
    missing = [path for path in named_files(page) if not list(_globbed(path))]
    assert not missing


def test_the_tree_of_the_design_is_that_of_the_repository() -> None:
    drawn = [path for block in blocks(ROOT / "docs/design.md") if block.language == "text" for path in tree(block.text)]
    assert len(drawn) > 60
    assert not [path for path in drawn if not list(_globbed(path))]


def _globbed(path: str) -> itertools.chain[Path]:
    """Return the files that a path with {a,b} or * stands for; none if one of a and b is missing."""
    parts = [part[1:-1].split(",") if part[:1] == "{" else [part] for part in re.split(r"(\{.*?\})", path)]
    found = [list(ROOT.glob("".join(choice))) for choice in itertools.product(*parts)]
    return itertools.chain(*(found if all(found) else []))


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120

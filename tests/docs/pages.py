"""The pages that people read, cut into what can be checked: code blocks, command lines, links, names of files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")
SLOW = "<!-- slow -->"
NO_SHELL = ("python", "cpp", "text")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the heading above it, its language, and whether the page calls it slow."""

    page: Path
    heading: str
    language: str
    text: str
    slow: bool

    def __str__(self) -> str:
        return f"{self.page.name}: {self.heading}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        above = FENCE.sub("", text[: match.start()])
        headings = HEADING.findall(above)
        slow = above.rstrip().endswith(SLOW)
        yield Block(page, headings[-1] if headings else "", match[1], match[2], slow)


def python_sections() -> list[list[Block]]:
    """Return the Python blocks that stand under one heading together: the later ones use names of the earlier ones."""
    sections: dict[tuple[Path, str], list[Block]] = {}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                sections.setdefault((page, block.heading), []).append(block)
    return list(sections.values())


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command line that stands in a block; comments and variables before it are cut off."""
    for block in blocks(page):
        if block.language in NO_SHELL:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := words_of(line):
                yield words


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of the commands with options or arguments that stand in a sentence."""
    for code in INLINE.findall(prose(page)):
        if re.match(r"(accel|pointcloud|python -m|make) ", code):
            yield words_of(code)


def words_of(line: str) -> list[str]:
    """Return the words of a command line."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return [word.removeprefix(".venv/bin/") for word in words]


def links(page: Path) -> list[str]:
    """Return where a page's links and pictures point to, within the repository."""
    targets = [first or second for first, second in LINK.findall(prose(page))]
    return [target for target in targets if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the names that headings of a page have in links."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def named_files(page: Path) -> Iterator[str]:
    """Yield what a page names in backticks that lies in the repository, by the folder or file it begins with.

    A name in capitals stands for the reader's own: what is above it is yielded.
    """
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}  # by commands, `out` among them
    tops = {path.name for path in ROOT.iterdir()} - made
    for code in INLINE.findall(prose(page)):
        path = re.sub(r"/[A-Z]{3,}.*", "", code.rstrip("/"))
        is_path = re.fullmatch(r"[\w.*/{},-]+", path) and ("/" in code or re.search(r"\.(py|md|toml|json|cpp)$", code))
        if is_path and path.split("/")[0] in tops:
            yield path


def tree(block: str) -> Iterator[str]:
    """Yield the paths of a tree drawn by indents of two: a name, then what it is; a name may hold several, {a,b}."""
    above: list[str] = []
    for line in block.splitlines():
        match = re.match(r"( *)(\S+)", line)
        if match:
            depth = len(match[1]) // 2
            if depth > len(above):  # a line that goes on
                continue
            above[depth:] = [match[2].rstrip("/")]
            yield "/".join(above)

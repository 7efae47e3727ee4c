"""The library in the cache: built once, and again when it is not what was built."""

import errno
import hashlib
import logging
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from sparse_kernels import _build, _extension


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Return the folders in which a library was built; it is a plain file here."""
    done: list[Path] = []

    def compile_(compiler: str, units: object, folder: Path, flags: tuple[str, ...]) -> Path:
        done.append(folder)
        (folder / "library.so").write_bytes(bytes(1000))
        return folder / "library.so"

    monkeypatch.setattr(_build, "_compile", compile_)
    monkeypatch.setattr(_build, "_usual_folder", lambda: tmp_path)
    return done


def test_the_first_use_builds_and_says_so(builds: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    library = _build.build(sys.executable)
    assert _build.build(sys.executable) == library and len(builds) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("building the C++ kernels for this processor")
    assert _build.build(sys.executable, ("-g",)) != library and len(builds) == 2


@pytest.mark.parametrize("name", ["COMMON", "LINK"])
def test_other_flags_make_another_library(name: str, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    library = _build.build(sys.executable)
    monkeypatch.setattr(_build, name, [*getattr(_build, name), "-g"])
    assert _build.build(sys.executable) != library and len(builds) == 2


def test_where_home_is_unknown_a_private_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = _build.cache_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert _build.cache_folder() == folder, "every process finds what one has built"
    folder.chmod(0o755)  # others could have put something there
    assert _build.cache_folder() not in (folder, tmp_path)


@pytest.mark.parametrize("left", [0, 500])
def test_a_truncated_library_is_built_again(left: int, builds: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    library = _build.build(sys.executable)
    library.write_bytes(library.read_bytes()[:left])
    caplog.clear()
    assert _build.build(sys.executable).stat().st_size == 1000 and len(builds) == 2
    assert f"{library} is damaged: building the C++ kernels" in caplog.text
    library.with_suffix(".sha256").write_text("")
    assert _build.build(sys.executable).stat().st_size == 1000 and len(builds) == 3


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("from errors.h:3:\na.cpp:7:1: error: no such thing\na.cpp:9:1: error: nor this\n  ^\n", "a.cpp:7"),
        ("ld: cannot find -ltorch_cpu\n\n", "ld: cannot find -ltorch_cpu"),
        (" \n", "it said nothing"),
    ],
)
def test_a_failed_build_names_its_first_error(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(compiler: str) -> Path:
        raise subprocess.CalledProcessError(1, [compiler], stderr=said)

    monkeypatch.setattr(_extension, "build", build)
    monkeypatch.setattr(_extension, "find_libraries", list)
    monkeypatch.setattr(_extension, "find_compilers", lambda: ["g++", "clang++"])
    first, _, second = _extension.load.__wrapped__().partition("; ")
    assert first.startswith(f"building the C++ kernels with g++ failed: {told}") and first.endswith(
        "(GCC 11 and clang 12 can)"
    )
    assert second.startswith("building the C++ kernels with clang++ failed: ")


def test_a_compiler_that_does_not_run_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac without its command-line tools."""
    shim = tmp_path / "g++"
    shim.write_text("#!/bin/sh\necho 'error: no developer tools were found' >&2\nexit 1\n")
    shim.chmod(0o755)
    monkeypatch.setattr(_build, "_usual_folder", lambda: tmp_path)
    monkeypatch.setattr(_extension, "find_compilers", lambda: [str(shim)])
    assert "failed: error: no developer tools were found" in _extension.load.__wrapped__()


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"g++": None, "clang++": None, "c++": "g++"}, ["g++", "clang++"]),
        ({"clang++": None, "c++": "clang++"}, ["clang++"]),
        ({"c++": None}, ["c++"]),
        ({"ccache": None, "g++": "ccache", "clang++": "ccache"}, ["g++", "clang++"]),
        ({}, []),
    ],
)
def test_compilers_of_a_machine(
    there: dict[str, str | None], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, target in there.items():
        path = tmp_path / name
        if target is None:
            path.touch(mode=0o755)
        else:
            path.symlink_to(target)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [Path(path).name for path in _build.find_compilers()] == expected


def test_the_next_compiler_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def build(compiler: str) -> Path:
        tried.append(compiler)
        if compiler == "g++":
            raise subprocess.CalledProcessError(1, [compiler], stderr="error: unrecognized option '-mamx-tile'")
        return Path("library.so")

    monkeypatch.setattr(_extension, "build", build)
    monkeypatch.setattr(_extension, "find_libraries", list)
    monkeypatch.setattr(_extension, "find_compilers", lambda: ["g++", "clang++", "c++"])
    monkeypatch.setattr("torch.ops.load_library", lambda path: None)
    monkeypatch.setattr(_extension, "importlib", mock.Mock())  # operators are not there
    assert _extension.load.__wrapped__() is None and tried == ["g++", "clang++"]


def test_without_a_compiler_a_library_of_before_serves(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(_extension, "find_compilers", list)
    monkeypatch.setattr("torch.ops.load_library", loaded.append)
    monkeypatch.setattr(_extension, "importlib", mock.Mock())  # operators are not there
    assert "no C++ compiler was found" in _extension.load.__wrapped__() and not loaded
    library = _build.build(sys.executable)
    _build.build(sys.executable, ("-g",))  # for debugging
    assert _extension.load.__wrapped__() is None and loaded == [str(library)]
    library.write_bytes(b"damaged")
    assert "no C++ compiler was found" in _extension.load.__wrapped__()


def test_a_library_in_a_folder_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that somebody else has filled."""

    def refuse(**options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    folder = tmp_path / ".cache" / "visual-accel"
    folder.mkdir(parents=True)
    library = folder / f"{_build._name(_build._units(platform.machine()))}-somebody.so"
    library.write_bytes(bytes(1000))
    library.with_suffix(".sha256").write_text(hashlib.sha256(bytes(1000)).hexdigest())
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _build.cache_folder() != folder and list(_build.find_libraries()) == [library]
    library.write_bytes(b"damaged")
    assert list(_build.find_libraries()) == []


def test_a_library_that_does_not_load_hides_no_other(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a move to an older system, where another compiler has built since."""
    library, tried = _build.build(sys.executable), []
    other = library.with_name(f"{library.stem.rpartition('-')[0]}-other.so")
    for file, copied in ((library, other), (library.with_suffix(".sha256"), other.with_suffix(".sha256"))):
        shutil.copy(file, copied)

    def load_library(path: str) -> None:
        tried.append(path)
        if path == str(library):
            raise OSError("version `GLIBC_2.38' not found")

    monkeypatch.setattr(_extension, "find_compilers", list)
    monkeypatch.setattr("torch.ops.load_library", load_library)
    monkeypatch.setattr(_extension, "importlib", mock.Mock())  # operators are not there
    assert _extension.load.__wrapped__() is None and tried == [str(library), str(other)]


def test_every_source_is_compiled() -> None:
    for machine in ("x86_64", "aarch64"):
        sources = {source for source, _ in _build._units(machine).values()}
        assert sources == {f"{path.parent.name}/{path.name}" for path in _build.SOURCES.glob("*/*.cpp")}


def test_objects_are_linked_in_a_fixed_order_with_what_runs_anywhere_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linker takes the first of what several objects have by one name."""
    linked: list[str] = []

    def run(command: list[str], **options: object) -> None:
        if "-shared" in command:
            linked.extend(Path(part).stem for part in command if part.endswith(".o"))
        else:
            time.sleep(random.random() / 100)  # done in any order

    monkeypatch.setattr(_build.subprocess, "run", run)
    units = _build._units("x86_64")
    _build._compile("g++", units, tmp_path, ())
    assert linked == list(units)
    plain = [name for name, (_, flags) in units.items() if not any(flag.startswith("-m") for flag in flags)]
    assert linked[: len(plain)] == plain


@pytest.mark.skipif(not (_build.find_compilers() and shutil.which("nm")), reason="no compiler, or no nm")
def test_kernels_of_two_instruction_sets_share_no_function(tmp_path: Path) -> None:
    """The linker keeps one of all inline functions of a name: that of another set would not run, or answer wrongly."""
    for name, (source, flags) in _build._units(platform.machine()).items():
        if not name.endswith(("_portable", "_emulated")):
            continue
        command = [_build.find_compilers()[0], *_build.COMMON, "-O0", "-Wno-psabi", f"-I{_build.SOURCES}", *flags]
        made = str(tmp_path / "one.o")
        subprocess.run([*command, "-c", str(_build.SOURCES / source), "-o", made], check=True)
        symbols = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True).stdout.splitlines()
        shared = [line for line in symbols if line[17:18] in ("W", "V", "u")]
        ours = [line for line in shared if "std::" not in line and "__gnu_cxx::" not in line]
        assert ours == [], name


def test_memory_comes_poisoned() -> None:
    """By the fixture of every test here."""
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(2, dtype=torch.bfloat16).isnan().all()
    assert torch.empty_like(torch.ones(2, dtype=torch.int32)).eq(2**31 - 1).all()


def test_a_home_that_cannot_be_entered_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd's ProtectHome; a name that is too long is refused to root too."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / ("x" * 300))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert list(_build.find_libraries()) == []


def test_another_system_has_a_library_of_its_own(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = set()
    for version in ("2.36", "2.38"):
        monkeypatch.setattr(_build.platform, "libc_ver", lambda version=version: ("glibc", version))
        libraries.add(_build.build(sys.executable))
    assert len(libraries) == 2 and set(_build.find_libraries()) == libraries


def test_a_library_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("no ELF")
    monkeypatch.setattr(_extension, "find_libraries", lambda: iter([broken]))
    monkeypatch.setattr(_extension, "find_compilers", list)
    assert "file too short" in (_extension.load.__wrapped__() or "")

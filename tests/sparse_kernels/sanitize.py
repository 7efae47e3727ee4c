"""Run the CPU kernels' tests with the library built under AddressSanitizer: `make sanitize`."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-O1")
# Python itself never frees all it takes, and a test asks for more memory than there is; everything else stops the run.
OPTIONS = "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1"
INSIDE = "--inside"


class CheckedLibrary:
    """A plugin that lets the tests load the checked library; pytest wants to import jaxtyping before we do."""

    def pytest_configure(self) -> None:
        from sparse_kernels import _extension

        _extension.build = functools.partial(_extension.build, flags=FLAGS)
        _extension.find_libraries = lambda: iter(())  # those of users are not checked


def inside() -> int:
    """Return the exit code of the tests."""
    import pytest

    # Fakes and compilers are not about memory, and torch's own Python is not built for this.
    chosen = "not opcheck and not flex and not triton and not build"
    options = ["-q", "-x", "-s", "-k", chosen, "-p", "no:cacheprovider"]
    return pytest.main([*options, str(Path(__file__).parent)], plugins=[CheckedLibrary()])


def outside() -> int:
    """Start again with the sanitizer's library loaded first, as it must be in a Python that was built without it."""
    # The C++ library as well, or exceptions cannot be followed.
    found = [_library(name) for name in ("libasan.so", "libstdc++.so")]
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": OPTIONS}
    return subprocess.run([sys.executable, __file__, INSIDE], env=environment).returncode


def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(inside() if INSIDE in sys.argv else outside())

"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accel.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name beside `path` to write to, and rename it when that went well; else leave no file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise InputError if files could not be written to `folder`, which need not exist; leaves nothing behind."""
    present = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=present):
            return
    except OSError as error:
        raise unwritable(folder, error) from error


def check_file(path: Path | None) -> None:
    """Raise InputError if a file could not be written there; its folder need not exist. None is no file."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"output file {str(path)!r} is a folder; give the name of a file")
    check_writable(path.parent)


def unwritable(folder: Path, error: OSError) -> InputError:
    """Return the error that says that and why a folder takes no files."""
    return InputError(
        f"output folder {str(folder)!r} cannot be written: {error.strerror or error}; give another folder"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

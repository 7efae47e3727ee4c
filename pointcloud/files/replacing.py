"""Files that appear under their names when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield another name beside `path`; what the block writes there takes the place of `path` at its end.

    If the block raises, that file goes and what was at `path` stays. No two calls get the same name, so that runs into
    one folder do not meet; a process that is killed leaves a file `.partial-...` behind. Write by Python's own files
    or functions that raise on a full disk: `ndarray.tofile`, `np.save` and open3d lose the end without a word.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

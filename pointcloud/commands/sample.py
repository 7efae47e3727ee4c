"""The command that gives a scan to try the others with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import one_line_errors


def sample(
    output: Annotated[Path, typer.Argument(help="the file to write, in KITTI's form")] = Path("sample.bin"),
) -> None:
    """Write the scan that comes with the package: a ray-cast street with vehicles, pedestrians and cyclists."""
    with one_line_errors():
        from pointcloud.detection.shipped import SAMPLE
        from pointcloud.files import replacing

        if output.exists():
            raise ValueError(f"{output} is there already; give another name")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {output.parent}; make it first")
        with replacing(output) as temporary:
            temporary.write_bytes(SAMPLE.read_bytes())
        typer.echo(f"wrote {output}")

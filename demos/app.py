"""A page that makes a video densely and sparsely and shows both, with what was gained and lost."""

from __future__ import annotations

import dataclasses
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from accel.errors import InputError
from accel.workbench.loading import load_pipeline


def check_free(host: str, port: int) -> None:
    """Raise InputError if nothing can listen there, before a model is loaded for it."""
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise InputError(
            f"the page cannot be served at {host} port {port}: {error.strerror or error}; give another --port or --host"
        ) from error


def main(
    model: Annotated[str | None, typer.Option(help="pipeline folder or id; default: the embedded shapes-wan")] = None,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the page")] = 7860,
    frames: Annotated[int | None, typer.Option(help="frames of the videos; default: the model's")] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels; default: the model's")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels; default: the model's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
) -> None:
    """Serve the page until it is interrupted."""
    given = {"num_frames": frames, "height": height, "width": width}
    try:
        check_free(host, port)
        from demos.page import build_page  # gradio takes seconds to import: a port in use is said before

        loaded = load_pipeline(model, device, dtype)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    defaults = loaded.defaults | {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="visual-accel-page-") as folder:
        page = build_page(dataclasses.replace(loaded, defaults=defaults), Path(folder))
        page.launch(server_name=host, server_port=port, share=False, ssr_mode=False)


if __name__ == "__main__":
    typer.run(main)

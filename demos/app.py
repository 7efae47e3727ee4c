"""A page that makes a video densely and sparsely and shows both, with what was gained and lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from accel.errors import InputError
from accel.methods.registry import PRESET
from accel.workbench.generation import call_arguments
from accel.workbench.loading import LoadedPipeline, load_pipeline
from accel.workbench.modular import call_defaults, class_of
from demos.runs import CHOICES, Runs


def check_free(host: str, port: int) -> None:
    """Raise InputError if nothing can listen there, before a model is loaded for it."""
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise InputError(
            f"the page cannot be served at {host} port {port}: {error.strerror or error}; give another --port or --host"
        ) from error


def check_method(name: str) -> None:
    """Raise InputError unless the page offers a method of that name."""
    if name not in CHOICES:
        raise InputError(f"unknown method {name!r}; accepted: {', '.join(CHOICES)}")


def with_size(loaded: LoadedPipeline, frames: int | None, height: int | None, width: int | None) -> LoadedPipeline:
    """Return the pipeline with that size as its default; InputError if no run of the page could be made with it."""
    if "image" in call_defaults(loaded.pipeline):
        raise InputError(
            f"{class_of(loaded.pipeline)} needs an image, which the page does not ask for; "
            "give a text-to-video model, or use accel generate --image FILE"
        )
    call_arguments(loaded, "", frames=frames, height=height, width=width)
    given = {"num_frames": frames, "height": height, "width": width}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(loaded, defaults=loaded.defaults | given)


def end_on_signals() -> None:
    """Let the signals that end a program do so as Ctrl-C does, so that the page's folder is removed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)


def pass_by_proxies(host: str) -> None:
    """Let this process reach its own page without a proxy: gradio asks, by httpx, whether the page is there."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = dict.fromkeys([*filter(None, known.split(",")), host, "127.0.0.1", "localhost"])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def serve(loaded: LoadedPipeline, host: str, port: int, method: str) -> None:
    """Serve the page of a pipeline until it is interrupted; what was made goes with it."""
    with tempfile.TemporaryDirectory(prefix="visual-accel-page-") as folder:
        # Gradio copies what it shows, by itself to a folder that all users share and that nobody empties.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder).resolve() / "gradio")
        from demos.page import build_page  # gradio takes seconds to import: bad input is said before

        page = build_page(Runs(loaded, Path(folder)), method)
        page.launch(server_name=host, server_port=port, share=False, ssr_mode=False, show_error=True)


def main(
    model: Annotated[str | None, typer.Option(help="pipeline folder or id; default: the embedded shapes-wan")] = None,
    method: Annotated[str, typer.Option(help="the method that is chosen at first")] = PRESET,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the page")] = 7860,
    frames: Annotated[int | None, typer.Option(help="frames of the videos; default: the model's")] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels; default: the model's")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels; default: the model's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
) -> None:
    """Serve the page until it is interrupted."""
    try:
        check_free(host, port)
        check_method(method)
        loaded = with_size(load_pipeline(model, device, dtype), frames, height, width)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    end_on_signals()
    pass_by_proxies(host)
    serve(loaded, host, port, method)


if __name__ == "__main__":
    typer.run(main)

"""A page that makes a video densely and sparsely and shows both, with what was gained and lost."""

from __future__ import annotations

import dataclasses
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
import typer

from accel.errors import InputError
from accel.methods.registry import DEFAULT_METHOD, SPARSE_METHODS
from accel.workbench.figures import figure_rows
from accel.workbench.generation import CallOptions
from accel.workbench.loading import LoadedPipeline, load_pipeline
from demos.runs import Runs, Stopped

EXAMPLES = [
    "a large red circle moves left on a white background",
    "a blue triangle moves up and a yellow square moves right",
    "a small green square stays still on a gray background",
]
MOST_STEPS = 50


Shown = tuple[str | None, str | None, list[list[str]], str | None, dict[str, Any] | None]
NOTHING: Shown = (None, None, [], None, None)


def run(runs: Runs, session: str, progress: gr.Progress, prompt: str, *settings: Any) -> Shown:
    """Return dense video, sparse video, table rows, picture, and what the browser keeps; gr.Error on bad input."""
    method, more, density, steps, seed, guidance = settings
    options: CallOptions = {"steps": int(steps), "seed": int(seed or 0), "guidance_scale": guidance}
    more = (more or "").strip()  # a field that was never opened has no text
    text = f"{method}:{more}" if more else method
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            comparison, written = runs.make(
                session, prompt or "", text, density, options, lambda share, message: progress(share, desc=message)
            )
    except Stopped:
        gr.Info("Stopped.")
        return NOTHING
    except (InputError, ValueError) as error:
        raise gr.Error(str(error)) from error
    for message in dict.fromkeys(str(each.message) for each in said if each.category is UserWarning):
        gr.Warning(message)
    return shown({"folder": written.name, "rows": [list(row) for row in figure_rows(comparison.report)]}, runs)


def shown(kept: dict[str, Any] | None, runs: Runs) -> Shown:
    """Return what the page shows of a result that the browser has kept, nothing if this server does not know it."""
    folder = runs.find(str(kept.get("folder"))) if isinstance(kept, dict) else None
    if folder is None or kept is None:
        return NOTHING
    return str(folder / "dense.mp4"), str(folder / "sparse.mp4"), kept["rows"], str(folder / "report.png"), kept


def build_page(loaded: LoadedPipeline, folder: Path) -> gr.Blocks:
    """Return the page; its videos and pictures are written below `folder`."""
    runs = Runs(loaded, folder)

    def start(
        prompt: str,
        method: str,
        more: str,
        density: float,
        steps: int,
        seed: int | None,
        guidance: float | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio is asked for a progress bar
    ) -> Shown:
        return run(runs, str(request.session_hash), progress, prompt, method, more, density, steps, seed, guidance)

    def stop(request: gr.Request) -> None:
        runs.stop(str(request.session_hash))

    def leave(request: gr.Request) -> None:
        runs.leave(str(request.session_hash))

    with gr.Blocks(title="visual-accel", analytics_enabled=False) as page:
        kept = gr.BrowserState(None, storage_key="visual-accel")
        gr.Markdown(f"# visual-accel\nThe same video of **{loaded.name}** with dense and with sparse attention.")
        inputs = _inputs(loaded.defaults)
        with gr.Row():
            button = gr.Button("Run", variant="primary", elem_id="run")
            halt = gr.Button("Stop", elem_id="stop")
        outputs = [*_outputs(), kept]
        triggers = [button.click, inputs[0].submit]
        gr.on(triggers, start, inputs, outputs, concurrency_limit=1, show_progress_on=outputs[:2])
        halt.click(stop, queue=False)
        page.unload(leave)
        page.load(lambda known: shown(known, runs), [kept], outputs)
        gr.Examples([[example] for example in EXAMPLES], [inputs[0]])
    return page


def _inputs(defaults: dict[str, Any]) -> list[Any]:
    """Lay out what is asked for, in the order that `run` takes it."""
    prompt = gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], elem_id="prompt")
    with gr.Row():
        method = gr.Dropdown(list(SPARSE_METHODS), value=DEFAULT_METHOD, label="Method")
        density = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Density of sparse calls")
        default_steps = defaults["num_inference_steps"]
        steps = gr.Slider(1, max(MOST_STEPS, default_steps), value=default_steps, step=1, label="Denoising steps")
    with gr.Accordion("More", open=False):
        more = gr.Textbox(label="Options of the method", placeholder="dense_steps=0.2:top_p=0.8", elem_id="options")
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            guidance = gr.Number(defaults["guidance_scale"], label="Guidance scale; 1 is none", elem_id="guidance")
    return [prompt, method, more, density, steps, seed, guidance]


def _outputs() -> list[Any]:
    """Lay out what a run gives."""
    with gr.Row():
        dense = gr.Video(label="Dense", elem_id="dense", autoplay=True, loop=True, interactive=False)
        sparse = gr.Video(label="Sparse", elem_id="sparse", autoplay=True, loop=True, interactive=False)
    numbers = gr.Dataframe(headers=["what", "value"], label="Numbers", elem_id="numbers", interactive=False)
    picture = gr.Image(label="Report", elem_id="picture", interactive=False, buttons=["download", "fullscreen"])
    return [dense, sparse, numbers, picture]


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

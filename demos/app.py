"""A page that makes a video densely and sparsely and shows both, with what was gained and lost."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import gradio as gr
import typer

from accel.errors import InputError
from accel.methods.registry import DEFAULT_METHOD, SPARSE_METHODS, by_name
from accel.workbench.comparison import Comparison, compare
from accel.workbench.figures import figure_rows
from accel.workbench.loading import LoadedPipeline, load_pipeline
from accel.workbench.reporting import write_comparison

EXAMPLES = [
    "a large red circle moves left on a white background",
    "a blue triangle moves up and a yellow square moves right",
    "a small green square stays still on a gray background",
]
MOST_STEPS = 50


def generate_both(
    loaded: LoadedPipeline,
    folder: Path,
    prompt: str,
    method: str,
    density: float,
    steps: int,
    progress: gr.Progress,
) -> tuple[str, str, list[list[str]], str]:
    """Return dense video, sparse video, table rows and picture, written below `folder`; gr.Error on bad input."""
    if not prompt.strip():
        raise gr.Error("The prompt is empty; say what the video shows.")

    def show(fraction: float, message: str) -> None:
        progress(fraction, desc=message)

    try:
        comparison = compare(loaded, by_name(method, density=density), prompt.strip(), steps=int(steps), progress=show)
        written = Path(tempfile.mkdtemp(dir=folder))
        write_comparison(comparison, written)
    except (InputError, ValueError) as error:
        raise gr.Error(str(error)) from error
    return str(written / "dense.mp4"), str(written / "sparse.mp4"), table(comparison), str(written / "report.png")


def table(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table: what, value."""
    return [list(row) for row in figure_rows(comparison.report)]


def build_page(loaded: LoadedPipeline, folder: Path) -> gr.Blocks:
    """Return the page; its videos and pictures are written below `folder`."""

    def run(
        prompt: str,
        method: str,
        density: float,
        steps: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio is asked for a progress bar
    ) -> tuple[str, str, list[list[str]], str]:
        return generate_both(loaded, folder, prompt, method, density, steps, progress)

    with gr.Blocks(title="visual-accel", analytics_enabled=False) as page:
        gr.Markdown(f"# visual-accel\nThe same video of **{loaded.name}** with dense and with sparse attention.")
        prompt = gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], elem_id="prompt")
        with gr.Row():
            method = gr.Dropdown(list(SPARSE_METHODS), value=DEFAULT_METHOD, label="Method")
            density = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Density of sparse calls")
            default_steps = loaded.defaults["num_inference_steps"]
            steps = gr.Slider(1, max(MOST_STEPS, default_steps), value=default_steps, step=1, label="Denoising steps")
        button = gr.Button("Run", variant="primary", elem_id="run")
        with gr.Row():
            dense = gr.Video(label="Dense", elem_id="dense", autoplay=True, loop=True, interactive=False)
            sparse = gr.Video(label="Sparse", elem_id="sparse", autoplay=True, loop=True, interactive=False)
        numbers = gr.Dataframe(headers=["what", "value"], label="Numbers", elem_id="numbers", interactive=False)
        picture = gr.Image(label="Report", elem_id="picture", interactive=False, buttons=["download", "fullscreen"])
        inputs, outputs = [prompt, method, density, steps], [dense, sparse, numbers, picture]
        triggers = [button.click, prompt.submit]
        gr.on(triggers, run, inputs, outputs, concurrency_limit=1, show_progress_on=[dense, sparse])
        gr.Examples([[example] for example in EXAMPLES], [prompt])
    return page


def main(
    model: Annotated[str | None, typer.Option(help="pipeline folder or id; default: the embedded shapes-wan")] = None,
    port: Annotated[int, typer.Option(help="port of the page on this machine")] = 7860,
    frames: Annotated[int | None, typer.Option(help="frames of the videos; default: the model's")] = None,
    height: Annotated[int | None, typer.Option(help="height in pixels; default: the model's")] = None,
    width: Annotated[int | None, typer.Option(help="width in pixels; default: the model's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
) -> None:
    """Serve the page until it is interrupted."""
    given = {"num_frames": frames, "height": height, "width": width}
    try:
        loaded = load_pipeline(model, device, dtype)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    defaults = loaded.defaults | {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="visual-accel-page-") as folder:
        page = build_page(dataclasses.replace(loaded, defaults=defaults), Path(folder))
        page.launch(server_name="127.0.0.1", server_port=port, share=False, ssr_mode=False)


if __name__ == "__main__":
    typer.run(main)

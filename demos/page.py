"""The page itself: what it asks for, what it shows, and a run from one to the other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gradio as gr

from accel.errors import InputError
from accel.methods.registry import DEFAULT_METHOD, SPARSE_METHODS
from accel.workbench.figures import figure_rows
from accel.workbench.generation import CallOptions
from accel.workbench.loading import LoadedPipeline
from demos.runs import NOTHING, Runs, Shown, Stopped

EXAMPLES = [
    "a large red circle moves left on a white background",
    "a blue triangle moves up and a yellow square moves right",
    "a small green square stays still on a gray background",
]
MOST_STEPS = 50


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
    return runs.shown({"folder": written.name, "rows": [list(row) for row in figure_rows(comparison.report)]})


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

    def ask(request: gr.Request) -> None:
        runs.ask(str(request.session_hash))

    with gr.Blocks(title="visual-accel", analytics_enabled=False) as page:
        kept = gr.BrowserState(None, storage_key="visual-accel")
        gr.Markdown(f"# visual-accel\nThe same video of **{loaded.name}** with dense and with sparse attention.")
        inputs = _inputs(loaded.defaults)
        with gr.Row():
            button = gr.Button("Run", variant="primary", elem_id="run")
            halt = gr.Button("Stop", elem_id="stop")
        outputs = [*_outputs(), kept]
        triggers = [button.click, inputs[0].submit]
        asked = gr.on(triggers, ask, queue=False)
        asked.then(start, inputs, outputs, concurrency_limit=1, show_progress_on=outputs[:2])
        halt.click(stop, queue=False)
        page.unload(stop)
        page.load(runs.shown, [kept], outputs)
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

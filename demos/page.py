"""The page itself: what it asks for, what it shows, and a run from one to the other."""

from __future__ import annotations

from typing import Any

import gradio as gr

from accel.workbench.figures import figure_rows
from accel.workbench.generation import CallOptions
from accel.workbench.index import first_line
from demos.runs import CHOICES, Runs, Shown, Stopped

EXAMPLES = [
    "a large red circle moves left on a white background",
    "a blue triangle moves up and a yellow square moves right",
    "a small green square stays still on a gray background",
]
MOST_STEPS = 50


def run(runs: Runs, session: str, progress: gr.Progress, prompt: str, *settings: Any) -> Shown | dict[str, Any]:
    """Return dense video, sparse video, table rows, picture, and what the browser keeps; gr.Error on what fails.

    What is shown stays if the run was stopped.
    """
    method, more, density, steps, seed, guidance = settings
    options: CallOptions = {"steps": int(steps), "seed": int(seed or 0), "guidance_scale": guidance}
    more = (more or "").strip()  # a field that was never opened has no text
    text = f"{method}:{more}" if more else method
    try:
        comparison, written, said = runs.make(
            session, prompt or "", text, density, options, lambda share, message: progress(share, desc=message)
        )
    except Stopped:
        gr.Info("Stopped.")  # not heard after the button, which has cancelled this run and says so itself
        return gr.skip()
    except (ValueError, RuntimeError, OSError) as error:  # bad input, too little memory, a full disk
        # Where nobody foresaw it, the traceback in the terminal helps.
        raise gr.Error(first_line(error), print_exception=isinstance(error, RuntimeError)) from error
    for message in said:
        gr.Warning(message)
    return runs.shown({"folder": written.name, "rows": [list(row) for row in figure_rows(comparison.report)]})


def build_page(runs: Runs, chosen: str) -> gr.Blocks:
    """Return the page that asks for these runs, with one method chosen."""
    with gr.Blocks(title="visual-accel", analytics_enabled=False) as page:
        kept = gr.BrowserState(None, storage_key="visual-accel")
        gr.Markdown(f"# visual-accel\nThe same video of **{runs.loaded.name}** with dense and with sparse attention.")
        inputs = _inputs(runs.loaded.defaults, chosen)
        with gr.Row():
            button = gr.Button("Run", variant="primary", elem_id="run")
            halt = gr.Button("Stop", elem_id="stop")
        outputs = [*_outputs(), kept]
        _connect(runs, page, button, halt, inputs, outputs)
        page.load(runs.shown, [kept], outputs)
        gr.Examples([[example] for example in EXAMPLES], [inputs[0]])
    return page


def _connect(
    runs: Runs, page: gr.Blocks, button: gr.Button, halt: gr.Button, inputs: list[Any], outputs: list[Any]
) -> None:
    """Let one button and the field of the prompt start a run, and another, or a closed page, end it."""

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
    ) -> Shown | dict[str, Any]:
        return run(runs, str(request.session_hash), progress, prompt, method, more, density, steps, seed, guidance)

    def ask(request: gr.Request) -> None:
        runs.ask(str(request.session_hash))

    def leave(request: gr.Request) -> None:
        runs.stop(str(request.session_hash))

    def stop(request: gr.Request) -> None:
        leave(request)
        gr.Info("Stopped.")

    asked = gr.on([button.click, inputs[0].submit], ask, queue=False)
    started = asked.then(start, inputs, outputs, concurrency_limit=1, show_progress_on=outputs[:2])
    # Cancelling takes a run that waits out of the queue, and lets this tab start another: gradio drops its clicks while
    # one is pending. A run that has begun goes on in its thread until `stop` ends it there. `stop` has a queue, of its
    # own: a function outside of all queues cannot tell the browser anything.
    halt.click(stop, concurrency_limit=None, cancels=[started])
    page.unload(leave)


def _inputs(defaults: dict[str, Any], chosen: str) -> list[Any]:
    """Lay out what is asked for, in the order that `run` takes it."""
    prompt = gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], elem_id="prompt")
    with gr.Row():
        method = gr.Dropdown(list(CHOICES), value=chosen, label="Method")
        density = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Density of sparse calls (preset: its own)")
        default_steps = defaults["num_inference_steps"]
        steps = gr.Slider(1, max(MOST_STEPS, default_steps), value=default_steps, step=1, label="Denoising steps")
    with gr.Accordion("More", open=False):
        more = gr.Textbox(label="Options of the method", placeholder="dense_steps=0.2:top_p=0.8", elem_id="options")
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            scale = defaults.get("guidance_scale")  # some models take none
            guidance = gr.Number(scale, label="Guidance scale; 1 is none", elem_id="guidance")
    return [prompt, method, more, density, steps, seed, guidance]


def _outputs() -> list[Any]:
    """Lay out what a run gives."""
    with gr.Row():
        dense = gr.Video(label="Dense", elem_id="dense", autoplay=True, loop=True, interactive=False)
        sparse = gr.Video(label="Sparse", elem_id="sparse", autoplay=True, loop=True, interactive=False)
    numbers = gr.Dataframe(headers=["what", "value"], label="Numbers", elem_id="numbers", interactive=False)
    picture = gr.Image(label="Report", elem_id="picture", interactive=False, buttons=["download", "fullscreen"])
    return [dense, sparse, numbers, picture]

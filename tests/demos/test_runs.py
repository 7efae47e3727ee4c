"""What the page does without a browser: stopping, waiting, finding results again, and where it listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer

from accel.errors import InputError
from accel.workbench.loading import load_pipeline
from demos import app
from demos.runs import NOTHING, Runs, Stopped

PROMPT, METHOD = "a red circle moves left", "adaspa:block=16:dense_steps=0.3"


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(load_pipeline(str(tiny_model), "cpu", "float32"), tmp_path_factory.mktemp("runs"))


def test_a_run_takes_seed_guidance_and_options_of_the_method(runs: Runs) -> None:
    options = {"steps": 2, "seed": 7, "guidance_scale": 2.0}
    comparison, folder = runs.make("tab", PROMPT, METHOD, 0.5, options, lambda share, message: None)
    report = comparison.report
    assert report["seed"] == 7 and report["guidance_scale"] == 2.0 and report["steps"] == 2
    assert report["method_options"] | {"block": 16, "dense_steps": 0.3, "density": 0.5} == report["method_options"]
    kept = {"folder": folder.name, "rows": [["speed-up", "2.00x"]]}
    assert runs.shown(kept) == (
        str(folder / "dense.mp4"), str(folder / "sparse.mp4"), kept["rows"], str(folder / "report.png"), kept
    )  # fmt: skip


@pytest.mark.parametrize("kept", [None, "x", {"rows": []}, {"folder": "../..", "rows": []}, {"folder": "gone"}])
def test_what_a_browser_kept_of_another_server_shows_nothing(runs: Runs, kept: object) -> None:
    assert runs.shown(kept) == NOTHING  # type: ignore[arg-type]


def test_a_run_ends_at_its_next_step(runs: Runs) -> None:
    steps: list[str] = []

    def progress(share: float, message: str) -> None:
        steps.append(message)
        runs.stop("other")
        if len(steps) == 2:
            runs.stop("tab")
            runs.ask("tab")  # a new run does not keep the old one

    before = set(runs.folder.iterdir())
    runs.ask("tab")
    with pytest.raises(Stopped):
        runs.make("tab", PROMPT, METHOD, None, {"steps": 3}, progress)
    assert len(steps) == 2 and set(runs.folder.iterdir()) == before


def test_what_waits_while_its_tab_stops_never_begins_and_a_new_click_runs(runs: Runs) -> None:
    steps: list[str] = []

    def make() -> Path:
        return runs.make("waits", PROMPT, METHOD, None, {"steps": 1}, lambda share, message: steps.append(message))[1]

    runs.ask("waits")
    runs.stop("waits")  # or a heartbeat of the tab was lost
    for _ in range(2):
        with pytest.raises(Stopped):
            make()
    assert not steps
    runs.ask("waits")
    assert make().is_dir() and steps


@pytest.mark.parametrize(
    ("prompt", "method", "message"),
    [
        (" ", METHOD, "The prompt is empty"),
        (PROMPT, "adaspa:blok=3", "has no option blok"),
        (PROMPT, "a:b", "no option"),
    ],
)
def test_bad_input_is_one_sentence(runs: Runs, prompt: str, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.make("tab", prompt, method, None, {}, lambda share, message: None)


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot be served at 127.0.0.1 port {port}: Address already in use"):
            app.check_free("127.0.0.1", port)
        with pytest.raises(typer.Exit) as ended:
            app.main(port=port, device="cpu")
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2 and said.count("\n") == 1 and said.startswith("error: the page cannot")
    app.check_free("127.0.0.1", port)

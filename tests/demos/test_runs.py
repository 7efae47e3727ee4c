"""What the page does without a browser: stopping, waiting, finding results again, and where it listens."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from accel.caching.table import Table
from accel.errors import InputError
from accel.methods.preset import Preset
from accel.methods.svg_ear import SVGEAR
from accel.workbench.loading import LoadedPipeline, embedded_folder, load_pipeline
from demos import app
from demos.runs import CHOICES, NOTHING, Runs, Stopped
from tests.accel.wan_models import pipeline

PROMPT, METHOD = "a red circle moves left", "adaspa:block=16:dense_steps=0.3"
SECONDS = 60


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(load_pipeline(str(tiny_model), "cpu", "float32"), tmp_path_factory.mktemp("runs"))


def test_a_run_takes_seed_guidance_and_options_of_the_method(runs: Runs) -> None:
    options = {"steps": 2, "seed": 7, "guidance_scale": 2.0}
    comparison, folder, said = runs.make("tab", PROMPT, METHOD, 0.5, options, lambda share, message: None)
    report = comparison.report
    assert not said
    assert report["seed"] == 7 and report["guidance_scale"] == 2.0 and report["steps"] == 2
    assert report["method_options"] | {"block": 16, "dense_steps": 0.3, "density": 0.5} == report["method_options"]
    kept = {"folder": folder.name, "rows": [["speed-up", "2.00x"]]}
    assert runs.shown(kept) == (
        str(folder / "dense.mp4"), str(folder / "sparse.mp4"), kept["rows"], str(folder / "report.png"), kept
    )  # fmt: skip


def test_the_preset_says_why_it_stays_dense(runs: Runs) -> None:
    comparison, _, said = runs.make("tab", PROMPT, "preset", 0.5, {"steps": 2}, lambda share, message: None)
    assert comparison.report["method"] == "preset" and comparison.report["cache"] == "none"
    assert any("128 tokens are too few for sparse attention" in message for message in said)


def test_the_preset_alone_comes_with_the_table_beside_the_model(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []

    def compare(loaded: LoadedPipeline, method: Any, prompt: str, *, cache: Any, **options: Any) -> None:
        asked.append((method, cache))
        raise Stopped

    monkeypatch.setattr("demos.runs.compare", compare)
    with_tables = Runs(dataclasses.replace(runs.loaded, folder=embedded_folder()), tmp_path)
    for method, steps in (("preset", 12), ("preset", 13), ("preset:dense_steps=0.2", 12), ("svg-ear", 12)):
        with pytest.raises(Stopped):
            with_tables.make("tab", PROMPT, method, 0.5, {"steps": steps}, lambda share, message: None)
    table = Table(table=str(embedded_folder() / "tables" / "12.json"))
    assert asked == [
        (Preset(), table), (Preset(), None), (SVGEAR(dense_steps=0.2), None), (SVGEAR(density=0.5), None)
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [None, "x", {"rows": []}, {"folder": "../..", "rows": []}, {"folder": "gone"}])
def test_what_a_browser_kept_of_another_server_shows_nothing(runs: Runs, kept: object) -> None:
    assert runs.shown(kept) == NOTHING  # type: ignore[arg-type]


def test_a_folder_that_somebody_has_removed_shows_nothing(runs: Runs, tmp_path: Path) -> None:
    assert Runs(runs.loaded, tmp_path / "gone").shown({"folder": "x", "rows": []}) == NOTHING


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


def test_a_run_waits_for_the_one_before_and_never_begins_if_it_was_stopped_meanwhile(runs: Runs) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    steps: list[str] = []

    def first(share: float, message: str) -> None:
        begun.set()
        assert goes_on.wait(SECONDS)

    def make(tab: str, progress: Callable[[float, str], object]) -> Path:
        return runs.make(tab, PROMPT, METHOD, None, {"steps": 1}, progress)[1]

    with ThreadPoolExecutor() as pool:
        try:
            running = pool.submit(make, "first", first)
            assert begun.wait(SECONDS)
            waiting = [pool.submit(make, tab, lambda _, message: steps.append(message)) for tab in ("second", "third")]
            deadline = time.monotonic() + SECONDS
            while not {"second", "third"} <= runs._running.keys():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            runs.stop("second")
            runs.ask("second")  # of a later click
            assert not steps
        finally:
            goes_on.set()
        assert running.result(SECONDS).is_dir()
        with pytest.raises(Stopped):
            waiting[0].result(SECONDS)
        assert waiting[1].result(SECONDS).is_dir() and steps


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


@pytest.fixture
def port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 18}, "error: frames is 18; this model makes "),
        ({"height": 60}, "error: height is 60; this model makes "),
        ({"method": "sparse"}, f"error: unknown method 'sparse'; accepted: {', '.join(CHOICES)}"),
    ],
)
def test_what_no_run_of_the_page_could_use_is_one_line(
    tiny_model: Path, port: int, given: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        app.main(model=str(tiny_model), port=port, device="cpu", **given)
    said = capsys.readouterr().err.splitlines()  # with the bars of what was loaded
    assert ended.value.exit_code == 2 and said[-1].startswith(message)
    assert sum(line.startswith("error: ") for line in said) == 1


def test_a_given_size_becomes_the_default(runs: Runs) -> None:
    sized = app.with_size(runs.loaded, 9, None, 32)
    assert sized.defaults == runs.loaded.defaults | {"num_frames": 9, "width": 32}


def test_a_model_that_needs_a_picture_is_refused() -> None:
    defaults = {"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 5}
    with pytest.raises(InputError, match="WanImageToVideoPipeline needs an image, which the page does not ask for"):
        app.with_size(LoadedPipeline(pipeline("wan-2.1-i2v"), "picture", defaults), None, None, None)


def test_proxies_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "internal,localhost")
    monkeypatch.setenv("NO_PROXY", "internal")
    app.pass_by_proxies("0.0.0.0")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "internal,localhost,0.0.0.0,127.0.0.1"


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back what was to happen at a signal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_the_page_as_an_interrupt_does_but_not_under_nohup(handlers: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    app.end_on_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

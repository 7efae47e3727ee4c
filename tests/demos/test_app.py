from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROMPT = "a large red circle moves left"
ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.fixture
def page_address(tiny_model: Path, tmp_path: Path) -> Iterator[str]:
    """The page of the tiny model, served by a process of its own that leaves nothing behind.

    The preset would stay dense: these are too few tokens.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "demos.app", "--model", str(tiny_model), "--port", str(port), "--device", "cpu"]
    command += ["--method", "svg-ear"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(address, server)
        yield address
    finally:
        server.terminate()
        server.communicate(timeout=SECONDS)
    left = {path.name for path in temporary.iterdir()}
    assert not [name for name in left if name == "gradio" or name.startswith("visual-accel-page-")]


def _wait_until_served(address: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"the page ended with {server.returncode}: {server.communicate()[0]}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the page was not served within {SECONDS} s")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium of the system, which keeps nothing and calls nobody."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install .[dev]")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path / 'profile'}",
        "window-size=1200,1800",
    ):
        options.add_argument(f"--{argument}")
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.mark.slow
@pytest.mark.browser
def test_a_prompt_becomes_two_videos_and_a_table(page_address: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str) -> list[Any]:
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def playable(video: Any) -> bool:
        return browser.execute_script("return arguments[0].readyState >= 2 && arguments[0].videoWidth == 64", video)

    wait = WebDriverWait(browser, SECONDS)
    browser.get(page_address)
    wait.until(lambda _: find("#prompt textarea, #prompt input") and find("#run"))
    find("#run")[0].click()
    wait.until(lambda _: "The prompt is empty" in find("body")[0].text)
    assert not find("#dense video")
    find("#prompt textarea, #prompt input")[0].send_keys(PROMPT)
    find("#run")[0].click()
    wait.until(lambda _: all(any(map(playable, find(f"#{way} video"))) for way in ("dense", "sparse")))
    wait.until(lambda _: "PSNR to dense" in find("#numbers")[0].text)
    wait.until(lambda _: find("#picture img"))
    browser.save_screenshot(str(tmp_path / "page.png"))
    sources = [find(f"#{way} video")[0].get_attribute("src") for way in ("dense", "sparse")]
    assert sources[0] != sources[1] and all(source.startswith(page_address) for source in sources)
    numbers = find("#numbers")[0].text
    assert re.search(r"\btokens\s+128\b", numbers)  # 2 x 8 x 8 in the latents
    likeness = re.search(r"PSNR to dense\s+([\d.]+) dB", numbers)
    assert likeness is not None and float(likeness[1]) > 10
    assert (tmp_path / "page.png").stat().st_size > 10_000

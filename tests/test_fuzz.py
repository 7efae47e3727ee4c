"""The short form of `make fuzz`, and that it sees what it is there to see."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch

import tests.fuzz
from sparse_kernels.block_sparse_attention import cpu
from tests.fuzz import make_calls
from tests.sparse_kernels.random_calls import call_kernels


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what does not fit to the functions' own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_random_calls_are_right_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    failed, line = make_calls(0, 300)
    assert failed == [], capsys.readouterr().out
    right, refused = (int(word) for word in line.split() if word.isdigit() and word != "0")
    assert right > 60 and refused > 60


@pytest.mark.parametrize("spoil", [lambda out: out + 0.2, lambda out: out[..., :1], lambda out: out / 0])
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]) -> None:
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *given: (lambda out, lse: (spoil(out), lse))(*forward(*given)))
    monkeypatch.setattr(tests.fuzz, "CALLS", (call_kernels,))
    assert make_calls(0, 300)[0]


def test_numbers_make_the_same_call_again() -> None:
    assert [tests.fuzz.call(number) for number in range(40)] == [tests.fuzz.call(number) for number in range(40)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_process_that_ends_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tests.fuzz.sys, "executable", "/bin/false")  # which returns 1, as a worker with failures
    assert tests.fuzz.watch(7, 2) == 1
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command: real(["sh", "-c", "kill -6 $$"]))
    assert tests.fuzz.watch(7, 2) == 2
    assert "call 7 ended by -6; again: python -m tests.fuzz 7" in capsys.readouterr().out

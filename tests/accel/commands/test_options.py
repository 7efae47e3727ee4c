"""What every command says in one line."""

from __future__ import annotations

import pytest
import torch
import typer

from accel.commands.options import one_line_errors


def test_a_gpu_without_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: CUDA out of memory. Tried to allocate 20.00 GiB. make the video smaller (--frames")
    assert said.count("\n") == 1


def test_other_errors_of_torch_are_ours_to_see() -> None:
    with pytest.raises(RuntimeError, match="sizes do not match"), one_line_errors():
        raise RuntimeError("sizes do not match")

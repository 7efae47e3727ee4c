"""The frames of a video file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Iterator[UInt8[Tensor, "h w"]], float]]:
    """Yield the grey frames of a video or GIF, one by one, and how many there are a second.

    FileNotFoundError without the file, ValueError if it is no video or ends in the middle of a frame.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Of all its forms this one tells size and rate in its first line.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(path.resolve())]
    command += ["-f", "yuv4mpegpipe", "-strict", "-1", "-pix_fmt", "gray", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            words = process.stdout.readline(4096).split()
            facts = {word[:1]: word[1:].decode() for word in words[1:]}
            if not facts.keys() >= {b"W", b"H", b"F"}:
                raise ValueError(f"{path} cannot be read as a video; give one that ffmpeg reads, as .mp4 or .gif")
            above, below = map(int, facts[b"F"].split(":"))
            yield _frames(process.stdout, path, int(facts[b"H"]), int(facts[b"W"])), above / below
        finally:
            process.kill()  # it may have more to say than was asked for


def _frames(stream: IO[bytes], path: Path, height: int, width: int) -> Iterator[UInt8[Tensor, "h w"]]:
    while stream.readline(4096):
        content = stream.read(height * width)
        if len(content) < height * width:
            raise ValueError(f"{path} cannot be read as a video: it ends within a frame")
        yield torch.from_numpy(np.frombuffer(content, np.uint8).reshape(height, width).copy())

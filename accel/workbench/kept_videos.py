"""The videos of a benchmark in a folder, each in a file that is named after what made it."""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from accel.errors import InputError
from accel.files import replacing, unwritable
from accel.workbench.generation import Generation
from accel.workbench.reporting import to_bytes, write_video

LONGEST_NAME = 80  # characters of a file's name: beside the rest, what every file system takes


@dataclass(frozen=True)
class KeptVideos:
    """A folder that holds, for each prompt and seed, a folder of videos."""

    folder: Path

    def keep(self, made: Generation, prompt: str, seed: int, way: str) -> str:
        """Write the video that `way` made and return its file as seen from the folder; InputError if it cannot be.

        What is there stays: a video of the same name, made with other steps or in another size, has its own row.
        """
        names = (f"{_name(way)}{'' if number == 1 else f'-{number}'}.mp4" for number in itertools.count(1))
        paths = (self.folder / f"{_name(prompt)}-{seed}" / name for name in names)
        file = next(path for path in paths if not path.exists())
        try:
            with replacing(file) as temporary:
                write_video(temporary, to_bytes(made.frames), made.frames_per_second)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return file.relative_to(self.folder).as_posix()

    def find(self, file: str) -> Path:
        """Return the path of a file that `keep` returned; InputError if it is not there."""
        path = self.folder / file
        if not path.is_file():
            raise InputError(f"{str(path)!r} is not there; give the folder that accel bench --videos wrote to")
        return path


def _name(text: str) -> str:
    """Return a text as part of a file's name; texts that would look alike differ in the digits at the end."""
    plain = re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-.")
    if plain == text.replace(" ", "-") and len(plain) <= LONGEST_NAME:
        return plain
    return f"{plain[:LONGEST_NAME].rstrip('-.')}-{zlib.crc32(text.encode()):08x}"

"""A folder of videos with captions as latents and text embeddings, encoded once by a pipeline's own parts."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accel.errors import InputError
from accel.files import replacing
from accel.workbench.loading import LoadedPipeline

FINGERPRINT = "made_from"


@dataclass(frozen=True)
class Samples:
    """Normalised latents, the embeddings of their captions, and that of no caption."""

    latents: Float[Tensor, "videos c t h w"]
    text: Float[Tensor, "videos tokens channels"]
    empty: Float[Tensor, "1 tokens channels"]

    def save(self, file: Path, fingerprint: str) -> None:
        """Write them, with what they were made from."""
        with replacing(file) as temporary:
            save_file(vars(self), temporary, {FINGERPRINT: fingerprint})

    @classmethod
    def load(cls, file: Path, fingerprint: str) -> Samples | None:
        """Return what is there if it was made from the same, else None."""
        try:
            with safe_open(file, "pt") as there:
                same = (there.metadata() or {}).get(FINGERPRINT) == fingerprint
                return cls(**{name: there.get_tensor(name) for name in there.keys()}) if same else None
        except (OSError, SafetensorError, TypeError):
            return None


def find_videos(folder: Path) -> dict[Path, str]:
    """Return the captions of all videos: `NAME.mp4` has its own in `NAME.txt`; InputError if one has none."""
    videos = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    if not videos:
        raise InputError(f"{str(folder)!r} holds no videos; give a folder of NAME.mp4, with captions in NAME.txt")
    captions: dict[Path, str] = {}
    for video in videos:
        file = video.with_suffix(".txt")
        try:
            captions[video] = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{str(file)!r} cannot be read as text in UTF-8: {error}; write it anew") from error
        if not captions[video]:
            raise InputError(f"{str(video)!r} has no caption: write what it shows to {file.name} beside it")
    return captions


def read_video(path: Path, frames: int, height: int, width: int) -> Float[Tensor, "1 3 t h w"]:
    """Return the first frames in [-1, 1], scaled and cut to size; InputError if they are too few, or it is no video."""
    cut = f"scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}"
    made = _decoded(path, frames, ["-vf", cut, "-f", "rawvideo", "-pix_fmt", "rgb24"])
    video = np.frombuffer(made, np.uint8).reshape(-1, height, width, 3)
    _check_length(path, len(video), frames)
    return torch.from_numpy(video.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def check_videos(videos: Iterable[Path], frames: int) -> None:
    """Raise InputError if a video is none, or has too few frames; all of them are decoded so far and not kept."""
    for path in videos:
        # A line for each frame, below some that begin with #.
        lines = _decoded(path, frames, ["-an", "-f", "framecrc"]).decode().splitlines()
        _check_length(path, sum(not line.startswith("#") for line in lines), frames)


def _decoded(path: Path, frames: int, way: list[str]) -> bytes:
    """Return what ffmpeg makes of the first frames in this way; InputError if the file is no video."""
    # Ffmpeg by itself: imageio leaves its pipes open. Only in whole paths is a colon not the end of a protocol's name.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", str(path.resolve())]
    command += ["-frames:v", str(frames), "-fps_mode", "passthrough", *way, "-"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        reason = next(iter(reversed(done.stderr.decode(errors="replace").strip().splitlines())), "ffmpeg failed")
        raise InputError(f"{str(path)!r} cannot be read as a video: {reason}; remove it, or give another")
    return done.stdout


def _check_length(path: Path, there: int, frames: int) -> None:
    if there < frames:
        raise InputError(f"{str(path)!r} has {there} frames, and {frames} are asked for; give --frames, or cut it")


def fingerprint(captions: Mapping[Path, str]) -> str:
    """Return what tells a folder of videos from another, by their names, sizes and captions."""
    facts = [[path.name, path.stat().st_size, text] for path, text in captions.items()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def samples_of(
    loaded: LoadedPipeline,
    folder: Path,
    size: dict[str, int],
    file: Path,
    report: Callable[[str], None] = lambda message: None,
) -> Samples:
    """Return a folder's videos of `size` (frames, height, width), encoded unless `file` holds them already."""
    captions = find_videos(folder)
    length = loaded.defaults.get("max_sequence_length", 512)
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns, text] for path, text in captions.items()]
    made_from = json.dumps([loaded.name, sorted(size.items()), length, facts])
    there = Samples.load(file, made_from)
    if there is not None:
        return there
    report(f"looking at {len(captions)} videos")
    check_videos(captions, size["frames"])
    latents = []
    for number, path in enumerate(captions):
        report(f"encoding {path.name}, {number + 1} of {len(captions)}")
        latents.append(_latents(loaded.pipeline, read_video(path, **size)))
    text = [_text(loaded.pipeline, caption, length) for caption in [*captions.values(), ""]]
    made = Samples(torch.cat(latents), torch.cat(text[:-1]), text[-1])
    made.save(file, made_from)
    return made


@torch.no_grad()
def _latents(pipeline: Any, video: Float[Tensor, "1 3 frames height width"]) -> Float[Tensor, "1 c t h w"]:
    """Return what the transformer is to make: latents normalised by the autoencoder's own mean and deviation."""
    vae = pipeline.vae
    if not hasattr(vae.config, "latents_mean"):
        raise InputError(f"{type(vae).__name__} does not tell mean and deviation of its latents; give a Wan pipeline")
    latents = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    mean, std = (torch.tensor(getattr(vae.config, f"latents_{name}")).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return (latents - mean) / std


@torch.no_grad()
def _text(pipeline: Any, caption: str, length: int) -> Float[Tensor, "1 tokens channels"]:
    embeddings, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
    return embeddings.float().cpu()

"""How close two videos are, and how long attention took."""

from __future__ import annotations

import time
from collections import Counter
from statistics import median

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from accel.models.records import CallRecord

ATTENTION_TIMINGS = 3
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_CONSTANTS = (0.01**2, 0.03**2)


def psnr(video: Float[np.ndarray, "t h w c"], reference: Float[np.ndarray, "t2 h2 w2 c2"]) -> float:
    """Return the mean over frames of each frame's PSNR in dB, values in [0, 1]; identical frames give inf."""
    _check_pair(video, reference)
    errors = np.square(video.astype(np.float64) - reference).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return float(np.mean(-10 * np.log10(errors)))


def ssim(video: Float[np.ndarray, "t h w c"], reference: Float[np.ndarray, "t2 h2 w2 c2"]) -> float:
    """Return the mean SSIM, values in [0, 1], Gaussian window of 11 with sigma 1.5 (Wang et al. 2004)."""
    _check_pair(video, reference)
    frames = [_ssim_frame(*pair) for pair in zip(_planes(video), _planes(reference), strict=True)]
    return float(np.mean(frames))


def _check_pair(video: np.ndarray, reference: np.ndarray) -> None:
    if video.ndim != 4 or video.shape != reference.shape:
        raise ValueError(f"two videos (t h w c) of one shape are compared, got {video.shape} and {reference.shape}")


def _planes(video: np.ndarray) -> list[Float[Tensor, "c 1 h w"]]:
    return [torch.from_numpy(frame.astype(np.float64)).permute(2, 0, 1)[:, None] for frame in video]


def _ssim_frame(x: Float[Tensor, "c 1 h w"], y: Float[Tensor, "c 1 h w"]) -> float:
    mean_x, mean_y, square_x, square_y, product = (_blur(plane) for plane in (x, y, x * x, y * y, x * y))
    luminance, contrast = SSIM_CONSTANTS
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    top = (2 * mean_x * mean_y + luminance) * (2 * covariance + contrast)
    return (top / ((mean_x**2 + mean_y**2 + luminance) * (variances + contrast))).mean().item()


def _blur(plane: Float[Tensor, "c 1 h w"]) -> Float[Tensor, "c 1 h w"]:
    distance = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=plane.dtype)
    window = torch.exp(-0.5 * (distance / SSIM_SIGMA) ** 2)
    window = window / window.sum()
    padded = torch.nn.functional.pad(plane, (SSIM_RADIUS,) * 4, mode="reflect")
    rows = torch.nn.functional.conv2d(padded, window.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, window.view(1, 1, 1, -1))


def attention_times(records: list[CallRecord], device: torch.device, dtype: torch.dtype) -> dict[str, float | None]:
    """Return the seconds of all recorded calls, what torch SDPA takes for the same calls here, and their ratio."""
    dense, sparse = _dense_seconds(records, device, dtype), sum(record.seconds for record in records)
    return {
        "attention_dense_seconds": dense,
        "attention_sparse_seconds": sparse,
        "attention_speedup": dense / sparse if sparse else None,
    }


def _dense_seconds(records: list[CallRecord], device: torch.device, dtype: torch.dtype) -> float:
    total = 0.0
    for (batch, heads, length, channels), calls in Counter(record.shape for record in records).items():
        # Diffusers hands over b s h d; the kernel sees a transposed view of it.
        q, k, v = torch.randn(3, batch, length, heads, channels, device=device, dtype=dtype).transpose(2, 3)
        seconds = []
        for _ in range(1 + ATTENTION_TIMINGS):
            start = synchronized_time(device)
            with torch.no_grad():
                scaled_dot_product_attention(q, k, v)
            seconds.append(synchronized_time(device) - start)
        total += calls * median(seconds[1:])
    return total


def synchronized_time(device: torch.device) -> float:
    """Return a clock's seconds after all work that a CUDA device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""Likeness of videos against hand values and torchmetrics, and the timing of dense attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel.models.records import CallRecord
from accel.workbench.metrics import attention_times, psnr, ssim


def video(seed: int, shape: tuple[int, ...] = (3, 24, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_identical_videos_are_infinitely_close():
    assert psnr(video(0), video(0)) == math.inf
    assert ssim(video(0), video(0)) == pytest.approx(1.0)


def test_psnr_of_a_constant_error_is_its_square_in_db():
    grey = np.full((2, 16, 16, 3), 0.5)
    assert psnr(grey + 0.1, grey) == pytest.approx(20.0)


def test_psnr_is_the_mean_over_frames_and_not_of_the_mean_error():
    reference = np.zeros((2, 16, 16, 3))
    other = reference + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
    assert psnr(other, reference) == pytest.approx((20 + 40) / 2)


def test_ssim_of_constant_frames_is_the_luminance_term():
    dark, light = np.full((1, 16, 16, 3), 0.2), np.full((1, 16, 16, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(dark, light) == pytest.approx(expected)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_equals_torchmetrics(noise: float):
    image = pytest.importorskip("torchmetrics.functional.image")
    reference = video(0)
    other = np.clip(reference + noise * (video(1) - 0.5), 0, 1)
    planes = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (other, reference)]
    expected = image.structural_similarity_index_measure(*planes, data_range=1.0)
    assert ssim(other, reference) == pytest.approx(expected.item(), abs=1e-6)


def test_videos_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        psnr(video(0), video(0)[:2])


def test_attention_times_scale_with_the_number_of_calls():
    records = [CallRecord(step, 2, 0, "cond", "sparse", 0.5, 0.25, 0.9, (1, 2, 64, 16)) for step in range(2)]
    times = attention_times(records, torch.device("cpu"), torch.float32)
    assert times["attention_sparse_seconds"] == 0.5
    assert times["attention_dense_seconds"] > 0
    assert times["attention_speedup"] == pytest.approx(times["attention_dense_seconds"] / 0.5)


def test_attention_times_of_no_calls():
    assert attention_times([], torch.device("cpu"), torch.float32) == {
        "attention_dense_seconds": 0.0,
        "attention_sparse_seconds": 0,
        "attention_speedup": None,
    }

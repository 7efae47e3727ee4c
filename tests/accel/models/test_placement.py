"""Processors that others put in the place of ours, and that diffusers keeps to put back."""

from __future__ import annotations

import warnings

import pytest

import accel
from accel.models.wrapped_processor import SparseAttentionProcessor
from tests.accel.models.loops import Loop, difference, processors

FULL = dict(block=16)


def test_fused_projections_take_our_place_and_give_none_back() -> None:
    """CogVideoX and Stable Diffusion 3 change all processors where others keep theirs."""
    loop = Loop("cogvideox-2b")
    stock = loop()
    handle = accel.enable(loop, "full", **FULL)
    loop.transformer.fuse_qkv_projections()
    with pytest.warns(UserWarning, match="2 layers had their processors replaced after accel.enable; call it again"):
        assert difference(loop(), stock) < 1e-5
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        loop()
    handle.disable()
    loop.transformer.unfuse_qkv_projections()
    ours = [each for each in processors(loop.transformer).values() if isinstance(each, SparseAttentionProcessor)]
    assert not ours and difference(loop(), stock) == 0


def test_fused_projections_are_sparse_after_another_enable_and_ours_return_while_attached() -> None:
    loop = Loop("cogvideox-2b")
    stock = loop()
    with accel.enabled(loop, "full", **FULL) as handle:
        loop.transformer.fuse_qkv_projections()
        loop.transformer.unfuse_qkv_projections()
        assert difference(loop(), stock) < 2e-6 and {record.kind for record in handle.stats()} == {"sparse"}
    loop.transformer.fuse_qkv_projections()
    with accel.enabled(loop, "full", **FULL) as handle:
        assert difference(loop(), stock) < 1e-5 and {record.kind for record in handle.stats()} == {"sparse"}

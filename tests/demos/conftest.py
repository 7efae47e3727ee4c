from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WanPipeline folder of random weights, which makes 5 frames of 64x64 in a moment."""
    from tests.tiny_wan import save_tiny

    size = {"num_frames": 5, "height": 64, "width": 64}
    defaults = {**size, "num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 24}
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", **defaults)

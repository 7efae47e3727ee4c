"""LTX-Video and LTX-2: a packed sequence of video tokens; audio and text have attention of their own."""

from __future__ import annotations

from accel.models.adapters.adapter import Adapter
from accel.models.adapters.readers import from_sizes

LTX = Adapter(
    ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    r"transformer_blocks\.\d+\.attn1",
    from_sizes(),
    stays="attention to text; all attention of audio",
)

"""The event networks that come with the package."""

from __future__ import annotations

from pathlib import Path

from pointcloud.spikepoint.network import SpikePoint

EMBEDDED = Path(__file__).parents[1] / "embedded" / "events"


def load_events_network(model: str) -> SpikePoint:
    """Return a network by its name or the path of its file; ValueError if there is no such model."""
    shipped = {file.stem: file for file in sorted(EMBEDDED.glob("*.safetensors"))}
    file = shipped.get(model, Path(model))
    if not file.is_file():
        raise ValueError(f"unknown model {model!r}; shipped: {', '.join(shipped) or 'none'}; or give a file's path")
    return SpikePoint.load(file)

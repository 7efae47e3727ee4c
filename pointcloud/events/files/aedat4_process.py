"""A program of its own, `aedat4_process.py RECORDING EVENTS.npy`: some damage makes the decoder abort its process.

It prints how many streams of events there are, and width and height of one; it imports nothing of ours, to start fast.
"""

from __future__ import annotations

import sys

import aedat
import numpy as np


def main(recording: str, target: str) -> None:
    """Write the rows t x y on of all events of a recording."""
    decoder = aedat.Decoder(recording)
    streams = {number: about for number, about in decoder.id_to_stream().items() if about["type"] == "events"}
    packets = [packet["events"] for packet in decoder if packet["stream_id"] in streams and "events" in packet]
    empty = np.zeros(0, [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])
    about = next(iter(streams.values()), {"width": 0, "height": 0})
    np.save(target, np.concatenate(packets) if packets else empty)
    print(len(streams), about["width"], about["height"])


if __name__ == "__main__":
    main(*sys.argv[1:])

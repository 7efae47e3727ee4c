"""Blocks of any size cut into tiles that a kernel takes at once, without waiting for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Tiles(NamedTuple):
    """Tiles of all blocks in rising order; a surplus one begins at or behind its block's end."""

    block: Int[Tensor, "#b #h tiles"]
    first: Int[Tensor, "#b #h tiles"]
    block_end: Int[Tensor, "#b #h tiles"]
    ends: Int[Tensor, "#b #h n"]  # tiles up to and with each block; the last one counts them


def cut_blocks(offsets: Int[Tensor, "#b #h n1"], length: int, rows: int) -> Tiles:
    """Cut blocks into tiles of at most `rows`; how many there may be follows from the shapes alone."""
    pieces = (offsets.diff(dim=-1) + (rows - 1)) // rows
    ends = pieces.cumsum(-1)
    number = torch.arange(pieces.shape[-1] + length // rows, device=offsets.device)
    number = number.expand(*ends.shape[:2], -1)
    block = torch.searchsorted(ends, number.contiguous(), right=True).clamp_(max=pieces.shape[-1] - 1)
    # A surplus tile lands behind the last piece of the last block: its first row is not below the block's end.
    first = offsets.gather(-1, block) + (number - (ends - pieces).gather(-1, block)) * rows
    return Tiles(block, first, offsets.gather(-1, block + 1), ends)

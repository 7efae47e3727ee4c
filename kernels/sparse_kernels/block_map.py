"""BlockMap: which key blocks each query block visits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from sparse_kernels import _extension
from sparse_kernels._checks import as_offsets, described

LONGEST = 2**31 - 1  # tokens of a sequence: offsets are int32


@dataclass(frozen=True, eq=False)
class BlockMap:
    """The one data structure of sparsity: packed lists of key blocks for each query block of each head.

    Blocks may differ in size, also from head to head; b or h of any field may be 1, which shares it. Offsets
    count positions after `q_order` and `kv_order`, if these are given to the attention. `key_block`, where it is
    given, is the size of all key blocks but the last, so that nobody has to read the offsets for it.
    """

    counts: Int[Tensor, "#b #h nq"]
    indices: Int[Tensor, "#b #h nq m"]
    q_offsets: Int[Tensor, "#b #h nq1"]
    kv_offsets: Int[Tensor, "#b #h nk1"]
    key_block: int | None = None

    def __post_init__(self) -> None:
        for name, dimensions in (("counts", 3), ("indices", 4), ("q_offsets", 3), ("kv_offsets", 3)):
            field = getattr(self, name)
            if not isinstance(field, Tensor) or field.dtype != torch.int32 or field.ndim != dimensions:
                raise ValueError(
                    f"{name} must be an int32 tensor with {dimensions} dimensions, got {described(field)}; "
                    "BlockMap.from_dense packs a mask"
                )
        blocks = self.counts.shape[-1]
        if self.indices.shape[2] != blocks or self.q_offsets.shape[-1] != blocks + 1:
            raise ValueError(
                f"counts, indices and q_offsets must agree on the number of query blocks, got {blocks}, "
                f"{self.indices.shape[2]} and {self.q_offsets.shape[-1] - 1}"
            )
        if self.kv_offsets.shape[-1] == 0:
            raise ValueError("kv_offsets must hold at least the 0 at which the first block begins, got nothing")
        if self.key_block is not None and self.key_block < 1:
            raise ValueError(f"key_block must be 1 key or more, got {self.key_block}")
        for axis, name in enumerate(("batch", "heads")):
            sizes = [field.shape[axis] for field in vars(self).values() if isinstance(field, Tensor)]
            if len(set(sizes) - {1}) > 1:
                raise ValueError(f"the fields of a map must agree on {name}, or have 1 there, got {sizes}")

    def __eq__(self, other: object) -> bool:
        """Return whether the same blocks are visited, wherever they stand in the lists; reads from the device."""
        if not isinstance(other, BlockMap) or self.counts.device != other.counts.device:
            return False
        mine, theirs = ((x.to_dense(), x.q_offsets, x.kv_offsets) for x in (self, other))
        return all(map(torch.equal, mine, theirs))

    def __hash__(self) -> int:
        return hash((self.q_offsets.shape, self.kv_offsets.shape))

    @classmethod
    def from_dense(
        cls,
        mask: Bool[Tensor, "b h nq nk"],
        q_offsets: Int[Tensor, "*#bh nq1"],
        kv_offsets: Int[Tensor, "*#bh nk1"],
        key_block: int | None = None,
        longest: int | None = None,
    ) -> BlockMap:
        """Pack a mask of blocks; offsets are (n+1,) when all heads share them, else (b|1 h|1 n+1).

        `key_block`: keys of every key block but the last, if they are equal; nobody reads the offsets to check it.
        `longest`: what no row has more blocks than, for lists as short as that; None leaves room for all. On a GPU
        nobody counts: what is more is left out. ValueError on other types and shapes.
        """
        _check_mask(mask)
        q_offsets = as_offsets("q_offsets", q_offsets, mask.device)
        kv_offsets = as_offsets("kv_offsets", kv_offsets, mask.device)
        if mask.shape[-1] != kv_offsets.shape[-1] - 1:
            raise ValueError(f"the mask has {mask.shape[-1]} key blocks, kv_offsets has {kv_offsets.shape[-1] - 1}")
        room = mask.shape[-1] if longest is None else min(mask.shape[-1], max(1, longest))
        counts, indices = _packed(mask, room)
        if room < mask.shape[-1]:
            most = int(counts.max()) if mask.device.type == "cpu" and counts.numel() else 0
            if most > room:
                raise ValueError(f"the mask has a row with {most} blocks, longest is {longest}: give no less")
            counts = counts.clamp(max=room)
        return cls(counts, indices, q_offsets, kv_offsets, key_block)

    @classmethod
    def uniform(
        cls, mask: Bool[Tensor, "b h nq nk"], block_q: int, block_kv: int, q_length: int, kv_length: int
    ) -> BlockMap:
        """Pack a mask of equal blocks; only the last block of each axis may be shorter. ValueError as in from_dense."""
        _check_mask(mask)
        lengths = (("query", q_length, block_q), ("key", kv_length, block_kv))
        for present, (name, length, block) in zip(mask.shape[2:], lengths, strict=True):
            if present != _count(length, block):
                raise ValueError(
                    f"the mask has {present} {name} blocks, {length} tokens in blocks of {block} are "
                    f"{_count(length, block)}"
                )
        q_offsets, kv_offsets = (uniform_offsets(length, block, mask.device) for _, length, block in lengths)
        return cls.from_dense(mask, q_offsets, kv_offsets, block_kv)

    @property
    def q_length(self) -> int:
        """Number of query positions; reads one number back from the device."""
        return int(self.q_offsets[0, 0, -1])

    @property
    def kv_length(self) -> int:
        """Number of key positions; reads one number back from the device."""
        return int(self.kv_offsets[0, 0, -1])

    def to_dense(self) -> Bool[Tensor, "b h nq nk"]:
        """Return the mask of visited blocks."""
        blocks = self.kv_offsets.shape[-1] - 1
        valid = torch.arange(self.indices.shape[-1], device=self.indices.device) < self.counts[..., None]
        batch, heads, rows, _ = torch.broadcast_shapes(valid.shape, self.indices.shape)
        # One spare column takes the entries past each row's count, which may hold anything.
        target = torch.where(valid, self.indices, blocks).long().expand(batch, heads, rows, -1)
        mask = torch.zeros(batch, heads, rows, blocks + 1, dtype=torch.bool, device=self.indices.device)
        return mask.scatter_(-1, target, True)[..., :blocks]

    def pairs(self) -> Float[Tensor, "b h"]:
        """Return the number of query-key pairs that are computed, for each head."""
        q_sizes, kv_sizes = self.q_offsets.diff().double(), self.kv_offsets.diff().double()
        visited = (self.to_dense() * kv_sizes[..., None, :]).sum(-1)
        return (visited * q_sizes).sum(-1)

    def share(self) -> Float[Tensor, ""]:
        """Return computed query-key pairs as a share of all pairs, over all heads, on the device: it is not read."""
        pairs = self.pairs()
        if not pairs.numel():
            return pairs.new_zeros(())
        every = self.q_offsets[0, 0, -1].double() * self.kv_offsets[0, 0, -1]
        return pairs.mean() / every.clamp(min=1)

    @cached_property
    def density(self) -> float:
        """Computed query-key pairs as a share of all pairs, over all heads; 0 where there are none."""
        return self.share().item()

    def to_mask(self) -> Bool[Tensor, "b h sq skv"]:
        """Return the mask of query-key pairs, by position; for tests and small sizes only."""
        dense = self.to_dense()
        batch = max(dense.shape[0], self.q_offsets.shape[0], self.kv_offsets.shape[0])
        heads = max(dense.shape[1], self.q_offsets.shape[1], self.kv_offsets.shape[1])
        q_block = block_of_position(self.q_offsets, self.q_length).expand(batch, heads, -1)
        kv_block = block_of_position(self.kv_offsets, self.kv_length).expand(batch, heads, -1)
        rows = dense.expand(batch, heads, -1, -1).gather(2, q_block[..., None].expand(-1, -1, -1, dense.shape[-1]))
        return rows.gather(3, kv_block[..., None, :].expand(-1, -1, self.q_length, -1))

    def to_flex(self) -> Any:  # not BlockMask: flex_attention is imported by those who use it
        """Return FlexAttention's BlockMask; ValueError unless all blocks but the last are of one size."""
        from torch.nn.attention.flex_attention import BlockMask

        block_q, block_kv = uniform_size(self.q_offsets), uniform_size(self.kv_offsets)
        if block_q is None or block_kv is None:
            raise ValueError("FlexAttention needs blocks of one size, shared by all heads; these differ")
        mask = self.to_dense()
        order = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
        nothing = torch.zeros_like(self.counts).expand(mask.shape[:3]).contiguous()
        batch, heads = mask.shape[:2]

        # The compiled kernel reads the lists alone; run eagerly, FlexAttention knows nothing but this function.
        @no_type_check  # the compiler traces it, which it cannot through the shape checks of the tests
        def visited(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return mask[b % batch, h % heads, q // block_q, kv // block_kv]

        return BlockMask.from_kv_blocks(
            nothing,
            torch.zeros_like(order),
            mask.sum(-1, dtype=torch.int32),
            order,
            BLOCK_SIZE=(block_q, block_kv),
            mask_mod=visited,
            seq_lengths=(self.q_length, self.kv_length),
        )

    def draw(self, batch: int = 0, head: int = 0, width: int = 64) -> str:
        """Return the map of one head as text, darker where more of its blocks are visited, `width` letters at most."""
        if width < 1:
            raise ValueError(f"width must be 1 letter or more, got {width}")
        mask = self.to_dense()
        if 0 in mask.shape:
            return ""
        mask = mask[min(batch, mask.shape[0] - 1), min(head, mask.shape[1] - 1)].float()
        size = (min(max(width // 2, 1), mask.shape[0]), min(width, mask.shape[1]))
        shades = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], size)[0, 0]
        return "\n".join("".join(" ░▒▓█"[min(4, int(x * 4.999))] for x in row) for row in shades.tolist())


def _packed(mask: Bool[Tensor, "b h nq nk"], room: int) -> tuple[Int32[Tensor, "b h nq"], Int32[Tensor, "b h nq m"]]:
    """Return how many blocks each row visits, and the first `room` of them in rising order."""
    if _extension.at_hand(mask):
        return torch.ops.sparse_kernels.pack_mask_cpu(mask.contiguous(), room)
    # Visited blocks go to the first places without a host round trip, others to a spare one.
    places = mask.cumsum(-1).sub_(1).masked_fill_(~mask, room).clamp_(max=room)
    numbers = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device).expand(mask.shape)
    indices = numbers.new_zeros(*mask.shape[:-1], room + 1).scatter_(-1, places, numbers)[..., :room]
    return mask.sum(-1, dtype=torch.int32), indices.contiguous()


def _check_mask(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 4:
        raise ValueError(
            f"the mask must be a bool tensor (b h query_blocks key_blocks), got {described(mask)}; "
            "compare scores with a threshold first"
        )


def uniform_offsets(length: int, block: int, device: torch.device | str = "cpu") -> Int[Tensor, " n1"]:
    """Return the boundaries of blocks of `block` tokens, the last one shorter where it must be."""
    return (torch.arange(_count(length, block) + 1, device=device) * min(block, LONGEST)).clamp(max=length).int()


def _count(length: int, block: int) -> int:
    """Return how many blocks a sequence has."""
    if block < 1 or not 0 <= length <= LONGEST:
        raise ValueError(f"blocks must have 1 token or more and sequences 0 to 2^31 - 1, got {block} and {length}")
    return -(-length // block)


def uniform_size(offsets: Int[Tensor, "b h n1"]) -> int | None:
    """Return the size of all blocks but the last, or None when they differ or there is none."""
    if offsets.shape[:2] != (1, 1) or offsets.shape[-1] < 2:
        return None
    sizes = offsets[0, 0].diff()
    first = int(sizes[0])
    return first if bool((sizes[:-1] == first).all()) and int(sizes[-1]) <= first else None


def block_of_position(offsets: Int[Tensor, "b h n1"], length: int) -> Int[Tensor, "b h s"]:
    """Return the number of the block that each position lies in."""
    positions = torch.arange(length, device=offsets.device, dtype=torch.int32)
    positions = positions.expand(*offsets.shape[:2], length).contiguous()
    return torch.searchsorted(offsets[..., 1:].contiguous(), positions, right=True)

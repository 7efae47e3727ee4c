"""Attention inside sets, on projections made once a voxel."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from pointcloud.dsvt.sets import SetLayout


class SetAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with its parameters, over sets of voxels: queries and keys x + position, values x.

    The published form projects `set_size` slots of every set, repeated voxels too, and masks the repeats. Here each
    voxel is projected once, and only what the dot products need is gathered.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "voxels c"], position: Float[Tensor, "voxels c"], layout: SetLayout
    ) -> Float[Tensor, "voxels c"]:
        """Return the attended features in the voxels' own order."""
        channels, heads = self.embed_dim, self.num_heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query_key = linear(x + position, weight[: 2 * channels], bias[: 2 * channels])
        value = linear(x, weight[2 * channels :], bias[2 * channels :])
        # index_select, since its backward is index_add and that of x[slots] an accumulating index_put.
        slots, shape = layout.slots.flatten(), (*layout.slots.shape, -1, heads, channels // heads)
        query, key = query_key.index_select(0, slots).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        value = value.index_select(0, slots).view(shape).squeeze(2).transpose(1, 2)
        attended = scaled_dot_product_attention(query, key, value, layout.present[:, None, None])
        attended = attended.transpose(1, 2).reshape(-1, channels).index_select(0, layout.places)
        return self.out_proj(attended)

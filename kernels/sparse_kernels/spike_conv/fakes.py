"""What the C++ operator returns for tensors without data: shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("sparse_kernels::spike_conv_cpu")
def _(spikes: Tensor, weight: Tensor, kernel_map: Tensor, instructions: str) -> Tensor:
    like = weight if spikes.dtype in (torch.bool, torch.uint8) else spikes
    return like.new_empty(kernel_map.shape[1], weight.shape[2])

"""Event-driven sparse convolution: only the weights of channels that fired are added."""

from sparse_kernels.spike_conv.api import spike_conv
from sparse_kernels.spike_conv.choice import break_even

__all__ = ["break_even", "spike_conv"]

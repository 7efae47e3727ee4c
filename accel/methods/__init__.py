"""Sparse-attention methods, one file a paper."""

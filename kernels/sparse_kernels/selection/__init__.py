"""Which entries of a row come first, and which of these a budget pays for."""

from sparse_kernels.selection.api import fill_budget, rank_entries

__all__ = ["fill_budget", "rank_entries"]
